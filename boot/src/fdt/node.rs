//! The tree: named nodes with ordered, typed properties.

use std::collections::BTreeMap;
use std::fmt;

/// The name by which nodes refer to one another while the tree is being made.
///
/// Becomes a phandle in the blob and a `label:` in the source; a phandle is given only to nodes
/// that something refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(String);

impl Label {
    /// A label with this name: a letter or `_`, then letters, digits or `_` (Devicetree
    /// Specification, "Labels"); any other character becomes `_`.
    pub fn new(name: impl AsRef<str>) -> Self {
        let mut label: String = name
            .as_ref()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        if !label.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            label.insert(0, '_');
        }
        Self(label)
    }

    /// A name that no label can have, for a node that is yet to be found.
    pub(super) fn provisional(name: String) -> Self {
        Self(name)
    }

    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Label {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One 32-bit cell of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// A number.
    U32(u32),
    /// The phandle of the node with this label.
    Ref(Label),
}

impl From<u32> for Cell {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<Label> for Cell {
    fn from(label: Label) -> Self {
        Self::Ref(label)
    }
}

/// What a property holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: the property's presence is its meaning.
    Empty,
    /// Big-endian 32-bit cells; 64-bit numbers are two of them.
    Cells(Vec<Cell>),
    /// NUL-terminated strings, one after another.
    Strings(Vec<String>),
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// Several of the above, one after another.
    Mixed(Vec<Value>),
}

impl Value {
    /// Bytes as the value they most likely are, for people to read: a blob doesn't tell.
    ///
    /// Printable strings, else cells, else bytes; whatever they are taken for, written to a blob
    /// they are the same bytes again.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Empty;
        }
        if let Some(strings) = printable(bytes) {
            return Self::Strings(strings);
        }
        match bytes.as_chunks() {
            (cells, []) => {
                Self::Cells(cells.iter().map(|c| Cell::U32(u32::from_be_bytes(*c))).collect())
            }
            _ => Self::Bytes(bytes.to_vec()),
        }
    }

    /// The bytes, as a blob has them; `None` where they depend on a phandle yet to be given.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Empty => Some(Vec::new()),
            Self::Bytes(bytes) => Some(bytes.clone()),
            Self::Strings(strings) => {
                Some(strings.iter().flat_map(|s| s.bytes().chain([0])).collect())
            }
            Self::Cells(cells) => {
                let cells = cells.iter().map(|cell| match cell {
                    Cell::U32(number) => Some(number.to_be_bytes()),
                    Cell::Ref(_) => None,
                });
                cells.collect::<Option<Vec<_>>>().map(|cells| cells.concat())
            }
            Self::Mixed(parts) => {
                let parts = parts.iter().map(Self::to_bytes);
                parts.collect::<Option<Vec<_>>>().map(|parts| parts.concat())
            }
        }
    }
}

/// The strings, if there is nothing but printable ones and no empty one.
fn printable(bytes: &[u8]) -> Option<Vec<String>> {
    let (0, text) = bytes.split_last()? else { return None };
    text.split(|byte| *byte == 0)
        .map(|string| {
            let printable = |b: &u8| b.is_ascii_graphic() || *b == b' ';
            let whole = !string.is_empty() && string.iter().all(printable);
            whole.then(|| String::from_utf8_lossy(string).into_owned())
        })
        .collect()
}

/// A named property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Its name, such as `compatible`.
    pub name: String,
    /// What it holds.
    pub value: Value,
}

/// A node: its name, properties and children, in the order in which they were added.
///
/// Built fluently:
///
/// ```
/// use boot::fdt::{Label, Node};
///
/// let clock = Node::new("apb-pclk")
///     .label("apb_pclk")
///     .strings("compatible", ["fixed-clock"])
///     .u32("#clock-cells", 0)
///     .u32("clock-frequency", 24_000_000);
/// let uart = Node::at("serial", 0x900_0000)
///     .reg([(0x900_0000, 0x1000)])
///     .refs("clocks", ["apb_pclk"]);
/// assert_eq!(uart.name(), "serial@9000000");
/// # let _ = clock;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    name: String,
    label: Option<Label>,
    phandle: Option<u32>,
    properties: Vec<Property>,
    children: Vec<Node>,
}

impl Node {
    /// A node with this name; the root's is empty.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            label: None,
            phandle: None,
            properties: Vec::new(),
            children: Vec::new(),
        }
    }

    /// A node named `name@address`, the address in lower-case hex without leading zeros.
    pub fn at(name: &str, address: u64) -> Self {
        Self::new(format!("{name}@{address:x}"))
    }

    /// Its name, with the unit address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The label by which others refer to it.
    pub fn get_label(&self) -> Option<&Label> {
        self.label.as_ref()
    }

    /// The phandle that it has whatever refers to it.
    pub fn get_phandle(&self) -> Option<u32> {
        self.phandle
    }

    /// Its properties in order.
    pub fn properties(&self) -> &[Property] {
        &self.properties
    }

    /// Its children in order.
    pub fn children(&self) -> &[Node] {
        &self.children
    }

    /// Its children, to be changed.
    pub fn children_mut(&mut self) -> &mut Vec<Node> {
        &mut self.children
    }

    /// The values of its properties, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.properties.iter_mut().map(|property| &mut property.value)
    }

    /// The names and values of its properties, the latter to be changed.
    pub(super) fn properties_mut(&mut self) -> impl Iterator<Item = (&str, &mut Value)> {
        self.properties.iter_mut().map(|p| (p.name.as_str(), &mut p.value))
    }

    /// [Sets](Self::set) many properties, in a time that grows with their number only.
    pub(super) fn set_properties(&mut self, properties: &[Property]) {
        let own = self.properties.iter().enumerate();
        let mut places: BTreeMap<String, usize> =
            own.map(|(place, property)| (property.name.clone(), place)).collect();
        for property in properties {
            let end = self.properties.len();
            let place = *places.entry(property.name.clone()).or_insert(end);
            match self.properties.get_mut(place) {
                Some(before) => before.value = property.value.clone(),
                None => self.properties.push(property.clone()),
            }
        }
    }

    /// The value of the property called `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.properties.iter().find(|p| p.name == name).map(|p| &p.value)
    }

    /// Sets the property called `name`, in its old place if there was one.
    pub fn set(&mut self, name: &str, value: Value) {
        match self.properties.iter_mut().find(|p| p.name == name) {
            Some(property) => property.value = value,
            None => self.properties.push(Property { name: name.to_owned(), value }),
        }
    }

    /// Removes the property called `name` and returns what it held.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let index = self.properties.iter().position(|p| p.name == name)?;
        Some(self.properties.remove(index).value)
    }

    /// Gives the node a label.
    pub fn label(mut self, label: impl Into<Label>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the phandle that the node has whatever refers to it: for nodes from elsewhere, in which
    /// it may be a number among others.
    pub fn phandle(mut self, phandle: u32) -> Self {
        self.phandle = Some(phandle);
        self
    }

    /// Takes the phandle that was set.
    pub fn take_phandle(&mut self) -> Option<u32> {
        self.phandle.take()
    }

    /// Gives the node a label, or takes it.
    pub fn set_label(&mut self, label: Option<Label>) {
        self.label = label;
    }

    /// Adds a property, or replaces the one of that name.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.set(name, value);
        self
    }

    /// Adds a property without a value.
    pub fn flag(self, name: &str) -> Self {
        self.with(name, Value::Empty)
    }

    /// Adds a property of one cell.
    pub fn u32(self, name: &str, value: u32) -> Self {
        self.cells(name, [value])
    }

    /// Adds a property of one 64-bit number (two cells, the high one first).
    pub fn u64(self, name: &str, value: u64) -> Self {
        self.cells(name, halves(value))
    }

    /// Adds a property of cells: numbers, references, or both as [`Cell`]s.
    pub fn cells<C: Into<Cell>>(self, name: &str, cells: impl IntoIterator<Item = C>) -> Self {
        self.with(name, Value::Cells(cells.into_iter().map(Into::into).collect()))
    }

    /// Adds a property of references to other nodes.
    pub fn refs<L: Into<Label>>(self, name: &str, labels: impl IntoIterator<Item = L>) -> Self {
        self.cells(name, labels.into_iter().map(Into::into))
    }

    /// Adds a property of one string.
    pub fn string(self, name: &str, value: impl Into<String>) -> Self {
        self.with(name, Value::Strings(vec![value.into()]))
    }

    /// Adds a property of strings.
    pub fn strings<S: Into<String>>(self, name: &str, values: impl IntoIterator<Item = S>) -> Self {
        self.with(name, Value::Strings(values.into_iter().map(Into::into).collect()))
    }

    /// Adds a property of bytes.
    pub fn bytes(self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.with(name, Value::Bytes(bytes.into()))
    }

    /// Adds `reg`: pairs of address and size, two cells each.
    pub fn reg(self, entries: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let cells = entries
            .into_iter()
            .flat_map(|(address, size)| halves(address).into_iter().chain(halves(size)));
        self.cells("reg", cells)
    }

    /// Adds a child.
    pub fn child(mut self, child: Node) -> Self {
        self.children.push(child);
        self
    }

    /// Adds children.
    pub fn with_children(mut self, children: impl IntoIterator<Item = Node>) -> Self {
        self.children.extend(children);
        self
    }
}

/// A 64-bit number as two cells, the high one first.
fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    [(value >> 32) as u32, value as u32]
}
