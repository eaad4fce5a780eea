//! What properties hold: numbers, text, bytes, and references to other nodes.

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
    let printable = |b: u8| b.is_ascii_graphic() || b == b' ';
    let strings = strings(bytes)?.into_iter();
    strings.map(|s| (!s.is_empty() && s.bytes().all(printable)).then(|| s.to_owned())).collect()
}

/// The NUL-terminated strings that `bytes` are, if they are UTF-8.
pub(super) fn strings(bytes: &[u8]) -> Option<Vec<&str>> {
    let (0, text) = bytes.split_last()? else { return None };
    Some(std::str::from_utf8(text).ok()?.split('\0').collect())
}

/// A 64-bit number as two cells, the high one first.
pub(super) fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    [(value >> 32) as u32, value as u32]
}
