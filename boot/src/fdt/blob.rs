//! Tree → flattened device tree blob (Devicetree Specification, 5), through vm-fdt.

use thiserror::Error;
use vm_fdt::FdtWriter;

use super::node::{Cell, Label, Node, Value};
use super::phandle::{DEPTH_MAX, Phandles, path_of};

/// The longest name of a property (Devicetree Specification, 2.2.4, "Property names").
const PROPERTY_NAME_MAX: usize = 31;

/// Why a tree can't be written.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum BlobError {
    #[error("device tree node {path}: {property} refers to &{label}, which no node bears")]
    UnknownLabel { path: String, property: String, label: Label },
    #[error("device tree: {first} and {second} both bear the label {label}")]
    DuplicateLabel { label: Label, first: String, second: String },
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
    #[error("device tree node {path} can't be written: {source}")]
    Write { path: String, source: vm_fdt::Error },
    #[error("the device tree can't be written: {0}")]
    Finish(#[source] vm_fdt::Error),
}

impl BlobError {
    /// What mends it: a command or an option, where there is one.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::PropertyName { .. } => Some(format!(
                "names have up to {PROPERTY_NAME_MAX} of the characters a-z A-Z 0-9 , . _ + ? # -"
            )),
            Self::NodeName { .. } => Some(
                "names have up to 31 of the characters a-z A-Z 0-9 , . _ + - and start with a \
                 letter; @ and an address may follow"
                    .to_owned(),
            ),
            Self::UnknownLabel { .. }
            | Self::DuplicateLabel { .. }
            | Self::DuplicateChild { .. } => {
                Some("strait run --dry-run shows the tree with its labels".to_owned())
            }
            Self::Nul { .. } | Self::TooDeep { .. } | Self::Write { .. } | Self::Finish(_) => None,
        }
    }
}

/// Whether a blob can hold a property of this name (Devicetree Specification, 2.2.4).
///
/// Linux takes longer names than the specification allows, so a host's tree may have some.
pub fn is_property_name(name: &str) -> bool {
    (1..=PROPERTY_NAME_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b",._+?#-".contains(&b))
}

/// Whether a property holds a node's own phandle, under its present or its old name.
///
/// Such numbers come with nodes from elsewhere and mean nothing here: they aren't written.
pub(super) fn is_phandle(property: &str) -> bool {
    matches!(property, "phandle" | "linux,phandle")
}

/// The tree as a blob.
///
/// Nodes that something refers to get phandles, from 1 in tree order. A phandle property that a
/// node brings along isn't written.
///
/// # Errors
///
/// A reference to a label that no node bears, a label borne twice, siblings of one name, or a name
/// or value that the format can't hold; the error names the node.
pub fn to_blob(root: &Node) -> Result<Vec<u8>, BlobError> {
    let phandles = Phandles::number(root)?;
    let fdt = FdtWriter::new().map_err(BlobError::Finish)?;
    let mut writer = Writer { root, phandles, fdt, value: Vec::new() };
    if !root.name().is_empty() {
        return Err(BlobError::NodeName { path: "/".to_owned(), name: root.name().to_owned() });
    }
    writer.node(root)?;
    writer.fdt.finish().map_err(BlobError::Finish)
}

/// A blob in the making.
struct Writer<'a> {
    root: &'a Node,
    phandles: Phandles<'a>,
    fdt: FdtWriter,
    /// The value of one property at a time.
    value: Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Writes `node` and what is below. The depth has been checked with the phandles.
    fn node(&mut self, node: &'a Node) -> Result<(), BlobError> {
        let begun = self.fdt.begin_node(node.name()).map_err(|e| self.refused(node, None, e))?;
        for property in node.properties().iter().filter(|p| !is_phandle(&p.name)) {
            self.encode(node, &property.name, &property.value)?;
            self.fdt
                .property(&property.name, &self.value)
                .map_err(|e| self.refused(node, Some(&property.name), e))?;
        }
        if let Some(phandle) = node.get_label().and_then(|label| self.phandles.of(label)) {
            self.fdt
                .property("phandle", &phandle.to_be_bytes())
                .map_err(|e| self.refused(node, None, e))?;
        }
        self.check_children(node)?;
        node.children().iter().try_for_each(|child| self.node(child))?;
        self.fdt.end_node(begun).map_err(|e| self.refused(node, None, e))
    }

    /// Puts the bytes of a property's value into `self.value`.
    fn encode(&mut self, node: &Node, property: &str, value: &Value) -> Result<(), BlobError> {
        self.value.clear();
        match value {
            Value::Empty => {}
            Value::Bytes(bytes) => self.value.extend_from_slice(bytes),
            Value::Strings(strings) => {
                for string in strings {
                    if string.as_bytes().contains(&0) {
                        let path = path_of(self.root, node);
                        return Err(BlobError::Nul { path, property: property.to_owned() });
                    }
                    self.value.extend_from_slice(string.as_bytes());
                    self.value.push(0);
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
                    self.value.extend_from_slice(&number.to_be_bytes());
                }
            }
        }
        Ok(())
    }

    /// Refuses children without a name and children that share one.
    fn check_children(&self, node: &Node) -> Result<(), BlobError> {
        /// Up to this many, comparing each with each is cheaper than sorting.
        const FEW: usize = 8;
        let children = node.children();
        if let Some(nameless) = children.iter().find(|child| child.name().is_empty()) {
            let path = path_of(self.root, nameless);
            return Err(BlobError::NodeName { path, name: String::new() });
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

    /// What vm-fdt refused, with the node and property it was about.
    fn refused(&self, node: &Node, property: Option<&str>, source: vm_fdt::Error) -> BlobError {
        let path = path_of(self.root, node);
        match (source, property) {
            (vm_fdt::Error::InvalidPropertyName | vm_fdt::Error::InvalidString, Some(name)) => {
                BlobError::PropertyName { path, name: name.to_owned() }
            }
            (vm_fdt::Error::InvalidNodeName | vm_fdt::Error::InvalidString, None) => {
                BlobError::NodeName { path, name: node.name().to_owned() }
            }
            (source, _) => BlobError::Write { path, source },
        }
    }
}
