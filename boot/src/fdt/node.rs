//! The tree: named nodes with ordered, typed properties.

use super::value::{Cell, Label, Value, halves};
use crate::order;

/// The deepest tree that is read or written: what Linux unflattens (`FDT_MAX_DEPTH`).
pub(super) const MAX_DEPTH: usize = 64;

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
        let mut places = order::map(own.map(|(place, property)| (property.name.clone(), place)));
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

/// Whether a property can have this name: the characters of Devicetree Specification, 2.2.4, in
/// any number, as Linux takes them.
pub fn is_property_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b",._+?#-".contains(&b))
}

/// Whether a node below the root can have this name: the characters of Devicetree Specification,
/// 2.2.1, in any number, once with `@` before the unit address.
pub fn is_node_name(name: &str) -> bool {
    let is_part = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b",._+-".contains(&b));
    let (base, unit) = name.split_once('@').unwrap_or((name, "0"));
    !base.is_empty() && is_part(base) && !unit.is_empty() && is_part(unit)
}

/// Whether a property holds a node's own phandle, under its present or its old name.
///
/// Such numbers come with nodes from elsewhere and mean nothing here: they aren't written.
pub(super) fn is_phandle(property: &str) -> bool {
    matches!(property, "phandle" | "linux,phandle")
}

/// The path of `target`, which is part of the tree at `root`. Only errors need it.
pub(super) fn path_of(root: &Node, target: &Node) -> String {
    fn find<'a>(node: &'a Node, target: &Node, names: &mut Vec<&'a str>) -> bool {
        if std::ptr::eq(node, target) {
            return true;
        }
        if names.len() >= MAX_DEPTH {
            return false;
        }
        for child in node.children() {
            names.push(child.name());
            if find(child, target, names) {
                return true;
            }
            names.pop();
        }
        false
    }
    let mut names = Vec::new();
    find(root, target, &mut names);
    format!("/{}", names.join("/"))
}
