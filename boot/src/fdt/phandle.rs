//! Phandles: the numbers that labels become in a blob.

use std::collections::{BTreeMap, BTreeSet};

use super::error::BlobError;
use super::node::{MAX_DEPTH, Node, path_of};
use super::value::{Cell, Label, Value};

/// The first number given to a node that has none of its own.
///
/// Compilers number from 1, and a node copied from a host keeps its phandle. From here on, no
/// phandle of a host that was copied as a plain number refers to a node of the guest by accident;
/// and since the number isn't round, hardly any other number does.
pub const FIRST_PHANDLE: u32 = 0x1d00_0001;

/// The largest phandle: the next is -1, which stands for none.
const LAST_PHANDLE: u32 = u32::MAX - 1;

/// The phandle of every label that something refers to.
#[derive(Debug)]
pub(super) struct Phandles<'a>(BTreeMap<&'a Label, u32>);

/// What one walk over the tree finds.
struct Found<'a> {
    root: &'a Node,
    /// The nodes with a label, in tree order.
    labelled: Vec<(&'a Label, &'a Node)>,
    /// The labels that properties refer to.
    referenced: BTreeSet<&'a Label>,
    /// The nodes with a phandle of their own.
    numbered: BTreeMap<u32, &'a Node>,
}

impl<'a> Phandles<'a> {
    /// Numbers, from [`FIRST_PHANDLE`] in tree order, the nodes that something refers to and that
    /// have no phandle of their own.
    ///
    /// # Errors
    ///
    /// Two nodes with the same label or phandle, a phandle that stands for none, a tree that is too
    /// deep.
    pub(super) fn number(root: &'a Node) -> Result<Self, BlobError> {
        let (labelled, referenced, numbered) = Default::default();
        let mut found = Found { root, labelled, referenced, numbered };
        found.walk(root, 0)?;
        let mut free =
            (FIRST_PHANDLE..=LAST_PHANDLE).filter(|next| !found.numbered.contains_key(next));
        let (mut nodes, mut phandles) = (BTreeMap::new(), BTreeMap::new());
        for (label, node) in found.labelled {
            if let Some(first) = nodes.insert(label, node) {
                let (first, second) = (path_of(root, first), path_of(root, node));
                return Err(BlobError::DuplicateLabel { label: label.clone(), first, second });
            }
            if found.referenced.contains(label) {
                let phandle = node.get_phandle().or_else(|| free.next());
                phandles.extend(phandle.map(|phandle| (label, phandle)));
            }
        }
        Ok(Self(phandles))
    }

    /// The phandle of the node with this label, if something refers to it.
    pub(super) fn of(&self, label: &Label) -> Option<u32> {
        self.0.get(label).copied()
    }

    /// The phandle of `node`: its own, or the one it was given since something refers to it.
    pub(super) fn of_node(&self, node: &Node) -> Option<u32> {
        node.get_phandle().or_else(|| self.of(node.get_label()?))
    }
}

impl<'a> Found<'a> {
    /// Collects what is in and below `node`.
    fn walk(&mut self, node: &'a Node, depth: usize) -> Result<(), BlobError> {
        if depth >= MAX_DEPTH {
            return Err(BlobError::TooDeep { path: path_of(self.root, node) });
        }
        if let Some(label) = node.get_label() {
            self.labelled.push((label, node));
        }
        if let Some(phandle) = node.get_phandle() {
            if !(1..=LAST_PHANDLE).contains(&phandle) {
                return Err(BlobError::Phandle { path: path_of(self.root, node), phandle });
            }
            if let Some(first) = self.numbered.insert(phandle, node) {
                let (first, second) = (path_of(self.root, first), path_of(self.root, node));
                return Err(BlobError::DuplicatePhandle { phandle, first, second });
            }
        }
        node.properties().iter().for_each(|property| self.references(&property.value));
        node.children().iter().try_for_each(|child| self.walk(child, depth.saturating_add(1)))
    }

    /// Collects the labels in a value.
    fn references(&mut self, value: &'a Value) {
        match value {
            Value::Cells(cells) => {
                self.referenced.extend(cells.iter().filter_map(|cell| match cell {
                    Cell::Ref(label) => Some(label),
                    Cell::U32(_) => None,
                }))
            }
            Value::Mixed(parts) => parts.iter().for_each(|part| self.references(part)),
            Value::Empty | Value::Strings(_) | Value::Bytes(_) => (),
        }
    }
}
