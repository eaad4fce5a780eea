//! Tree → flattened device tree blob (Devicetree Specification, 5).
//!
//! Written here rather than by vm-fdt, which holds names to the specification's 31 characters:
//! boards have longer ones, and a guest's driver asks for them by name.

use std::collections::BTreeMap;

use thiserror::Error;

use super::format::{
    BEGIN_NODE, END, END_NODE, HEADER_SIZE, LAST_COMPATIBLE, MAGIC, PROP, VERSION,
};
use super::node::{Cell, Label, Node, Value};
use super::phandle::{DEPTH_MAX, Phandles, path_of};

/// Why a tree can't be written.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum BlobError {
    #[error("device tree node {path}: {property} refers to &{label}, which no node bears")]
    UnknownLabel { path: String, property: String, label: Label },
    #[error("device tree: {first} and {second} both bear the label {label}")]
    DuplicateLabel { label: Label, first: String, second: String },
    #[error("device tree: {first} and {second} both have the phandle {phandle:#x}")]
    DuplicatePhandle { phandle: u32, first: String, second: String },
    #[error("device tree node {path} can't have the phandle {phandle:#x}")]
    Phandle { path: String, phandle: u32 },
    #[error("device tree node {path} has two children named {name:?}")]
    DuplicateChild { path: String, name: String },
    #[error("device tree node {path} can't be named {name:?}")]
    NodeName { path: String, name: String },
    #[error("device tree node {path}: a property can't be named {name:?}")]
    PropertyName { path: String, name: String },
    #[error("device tree node {path}: a string of {property} holds a NUL")]
    Nul { path: String, property: String },
    #[error("device tree node {path} lies deeper than {DEPTH_MAX} levels")]
    TooDeep { path: String },
    #[error("the device tree has more than the 4 GiB that a blob can have")]
    TooLarge,
}

impl BlobError {
    /// What mends it: a command or an option, where there is one.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::PropertyName { .. } => {
                Some("names consist of the characters a-z A-Z 0-9 , . _ + ? # -".to_owned())
            }
            Self::NodeName { .. } => Some(
                "names consist of the characters a-z A-Z 0-9 , . _ + -; @ and an address may follow"
                    .to_owned(),
            ),
            Self::UnknownLabel { .. }
            | Self::DuplicateLabel { .. }
            | Self::DuplicatePhandle { .. } => {
                Some("strait run --dry-run shows the tree with its labels".to_owned())
            }
            Self::DuplicateChild { .. } => Some(
                "--vfio-platform NAME,node-name=N gives an assigned device's node another name"
                    .to_owned(),
            ),
            Self::Nul { .. } | Self::TooDeep { .. } | Self::Phandle { .. } | Self::TooLarge => None,
        }
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

/// The tree as a blob.
///
/// A node has the phandle that was [set](Node::phandle); others that something refers to are
/// numbered in tree order, from a number that hosts don't use. A phandle property that a node
/// brings along isn't written.
///
/// # Errors
///
/// A reference to a label that no node bears, a label or phandle borne twice, siblings of one name,
/// or a name or value that the format can't hold; the error names the node.
pub fn to_blob(root: &Node) -> Result<Vec<u8>, BlobError> {
    let phandles = Phandles::number(root)?;
    let structure = Vec::with_capacity(8 << 10);
    let mut writer =
        Writer { root, phandles, structure, strings: Vec::new(), offsets: BTreeMap::new() };
    if !root.name().is_empty() {
        return Err(BlobError::NodeName { path: "/".to_owned(), name: root.name().to_owned() });
    }
    writer.node(root)?;
    writer.token(END);
    writer.finish()
}

/// A blob in the making.
struct Writer<'a> {
    root: &'a Node,
    phandles: Phandles<'a>,
    /// The structure block.
    structure: Vec<u8>,
    /// The strings block: the names of properties, each once.
    strings: Vec<u8>,
    /// Where in it they are.
    offsets: BTreeMap<&'a str, u32>,
}

impl<'a> Writer<'a> {
    /// Writes `node` and what is below. The depth has been checked with the phandles.
    fn node(&mut self, node: &'a Node) -> Result<(), BlobError> {
        self.token(BEGIN_NODE);
        self.structure.extend_from_slice(node.name().as_bytes());
        self.structure.push(0);
        self.align();
        for property in node.properties().iter().filter(|p| !is_phandle(&p.name)) {
            if !is_property_name(&property.name) {
                let path = path_of(self.root, node);
                return Err(BlobError::PropertyName { path, name: property.name.clone() });
            }
            self.property(node, &property.name, &property.value)?;
        }
        if let Some(phandle) = self.phandles.of_node(node) {
            self.property(node, "phandle", &Value::Cells(vec![Cell::U32(phandle)]))?;
        }
        self.check_children(node)?;
        node.children().iter().try_for_each(|child| self.node(child))?;
        self.token(END_NODE);
        Ok(())
    }

    /// Writes one property.
    fn property(&mut self, node: &Node, name: &'a str, value: &Value) -> Result<(), BlobError> {
        self.token(PROP);
        let header = self.structure.len();
        // Length and name, of which the length isn't known yet.
        self.token(0);
        let name_offset = self.name(name)?;
        self.token(name_offset);
        let begin = self.structure.len();
        self.encode(node, name, value)?;
        let length = self.structure.len().saturating_sub(begin);
        let length = u32::try_from(length).map_err(|_| BlobError::TooLarge)?;
        if let Some(place) = self.structure.get_mut(header..).and_then(|s| s.first_chunk_mut()) {
            *place = length.to_be_bytes();
        }
        self.align();
        Ok(())
    }

    /// Appends the bytes of a property's value.
    fn encode(&mut self, node: &Node, property: &str, value: &Value) -> Result<(), BlobError> {
        match value {
            Value::Empty => {}
            Value::Bytes(bytes) => self.structure.extend_from_slice(bytes),
            Value::Strings(strings) => {
                for string in strings {
                    if string.as_bytes().contains(&0) {
                        let path = path_of(self.root, node);
                        return Err(BlobError::Nul { path, property: property.to_owned() });
                    }
                    self.structure.extend_from_slice(string.as_bytes());
                    self.structure.push(0);
                }
            }
            Value::Cells(cells) => {
                for cell in cells {
                    let number = match cell {
                        Cell::U32(number) => *number,
                        Cell::Ref(label) => {
                            self.phandles.of(label).ok_or_else(|| BlobError::UnknownLabel {
                                path: path_of(self.root, node),
                                property: property.to_owned(),
                                label: label.clone(),
                            })?
                        }
                    };
                    self.token(number);
                }
            }
            Value::Mixed(parts) => {
                for part in parts {
                    self.encode(node, property, part)?;
                }
            }
        }
        Ok(())
    }

    /// Where in the strings block this name is.
    fn name(&mut self, name: &'a str) -> Result<u32, BlobError> {
        if let Some(offset) = self.offsets.get(name) {
            return Ok(*offset);
        }
        let offset = u32::try_from(self.strings.len()).map_err(|_| BlobError::TooLarge)?;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        self.offsets.insert(name, offset);
        Ok(offset)
    }

    fn token(&mut self, token: u32) {
        self.structure.extend_from_slice(&token.to_be_bytes());
    }

    /// Pads to the next token.
    fn align(&mut self) {
        let aligned = self.structure.len().next_multiple_of(4);
        self.structure.resize(aligned, 0);
    }

    /// Puts header, an empty memory reservation block and the two blocks together.
    fn finish(self) -> Result<Vec<u8>, BlobError> {
        /// The entry of zeros that ends the block.
        const RESERVATIONS: u32 = 16;
        let length = |block: &[u8]| u32::try_from(block.len()).map_err(|_| BlobError::TooLarge);
        let (structure, strings) = (length(&self.structure)?, length(&self.strings)?);
        let structure_offset = HEADER_SIZE.saturating_add(RESERVATIONS);
        let strings_offset = structure_offset.checked_add(structure).ok_or(BlobError::TooLarge)?;
        let total = strings_offset.checked_add(strings).ok_or(BlobError::TooLarge)?;
        let boot_cpu = 0;
        let header = [
            MAGIC,
            total,
            structure_offset,
            strings_offset,
            HEADER_SIZE,
            VERSION,
            LAST_COMPATIBLE,
            boot_cpu,
            strings,
            structure,
        ];
        let mut blob: Vec<u8> = header.iter().flat_map(|field| field.to_be_bytes()).collect();
        blob.extend([0; RESERVATIONS as usize]);
        blob.extend(self.structure);
        blob.extend(self.strings);
        Ok(blob)
    }

    /// Refuses children with names that can't be, and children that share one.
    fn check_children(&self, node: &Node) -> Result<(), BlobError> {
        /// Up to this many, comparing each with each is cheaper than sorting.
        const FEW: usize = 8;
        let children = node.children();
        if let Some(wrong) = children.iter().find(|child| !is_node_name(child.name())) {
            let path = path_of(self.root, wrong);
            return Err(BlobError::NodeName { path, name: wrong.name().to_owned() });
        }
        let twice = if children.len() <= FEW {
            let mut rest = children.iter();
            std::iter::from_fn(|| rest.next().map(|child| (child.name(), rest.clone())))
                .find(|(name, others)| others.clone().any(|other| other.name() == *name))
                .map(|(name, _)| name)
        } else {
            let mut names: Vec<&str> = children.iter().map(Node::name).collect();
            names.sort_unstable();
            names.windows(2).find_map(|pair| match pair {
                [one, other] if one == other => Some(*one),
                _ => None,
            })
        };
        match twice {
            Some(name) => Err(BlobError::DuplicateChild {
                path: path_of(self.root, node),
                name: name.to_owned(),
            }),
            None => Ok(()),
        }
    }
}
