//! Tree → flattened device tree blob (Devicetree Specification, 5), written by vm-fdt.
//!
//! Ours are the tree, its labels and phandles, and errors that name the node.

use super::error::BlobError;
use super::node::{Node, is_node_name, is_phandle, is_property_name, path_of};
use super::phandle::Phandles;
use super::value::{Cell, Value};
use super::writer::AnyNameWriter;
use crate::order;

/// The tree as a blob.
///
/// A node has the phandle that was [set](Node::phandle); others that something refers to are
/// numbered in tree order, from a number that hosts don't use. A phandle property that a node
/// brings along isn't written.
///
/// # Errors
///
/// A reference to a label that no node has, two nodes with the same label or phandle, siblings of the
/// same name, or a name or value that the format can't hold; the error names the node.
pub fn to_blob(root: &Node) -> Result<Vec<u8>, BlobError> {
    let phandles = Phandles::number(root)?;
    if !root.name().is_empty() {
        return Err(BlobError::NodeName { path: "/".to_owned(), name: root.name().to_owned() });
    }
    let mut builder = Builder { root, phandles, fdt: AnyNameWriter::new()?, value: Vec::new() };
    builder.node(root)?;
    builder.fdt.finish()
}

/// A blob in the making.
struct Builder<'a> {
    root: &'a Node,
    phandles: Phandles<'a>,
    fdt: AnyNameWriter<'a>,
    /// The bytes of the property that is being written.
    value: Vec<u8>,
}

impl<'a> Builder<'a> {
    /// Writes `node` and what is below. The depth has been checked with the phandles.
    fn node(&mut self, node: &'a Node) -> Result<(), BlobError> {
        let open = self.fdt.begin_node(node.name())?;
        for property in node.properties().iter().filter(|p| !is_phandle(&p.name)) {
            if !is_property_name(&property.name) {
                let path = path_of(self.root, node);
                return Err(BlobError::PropertyName { path, name: property.name.clone() });
            }
            self.value.clear();
            self.encode(node, &property.name, &property.value)?;
            self.fdt.property(&property.name, &self.value)?;
        }
        if let Some(phandle) = self.phandles.of_node(node) {
            self.fdt.property("phandle", &phandle.to_be_bytes())?;
        }
        self.check_children(node)?;
        node.children().iter().try_for_each(|child| self.node(child))?;
        self.fdt.end_node(open)
    }

    /// Appends the bytes of a property's value.
    fn encode(&mut self, node: &Node, property: &str, value: &Value) -> Result<(), BlobError> {
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
            Value::Mixed(parts) => {
                for part in parts {
                    self.encode(node, property, part)?;
                }
            }
        }
        Ok(())
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
            order::sort(&mut names);
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
