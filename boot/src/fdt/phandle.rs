//! Phandles: the numbers that labels become in a blob.

use super::error::BlobError;
use super::node::{MAX_DEPTH, Node, path_of};
use super::value::{Cell, Label, Value};

/// The first number given to a node that has none of its own.
///
/// Compilers number from 1. A node copied from a host keeps its number, and a property of it may
/// hold a host's phandle that nobody knows to be one: none of those leads to another node here. Nor
/// does a number of another kind look like one of these: it isn't round.
pub const FIRST_PHANDLE: u32 = 0x1d00_0001;

/// The largest phandle: the next is -1, which stands for none.
const LAST_PHANDLE: u32 = u32::MAX - 1;

/// The phandle of every label that something refers to, in the order of labels.
#[derive(Debug)]
pub(super) struct Phandles<'a>(Vec<(&'a Label, u32)>);

/// What one walk over the tree finds.
#[derive(Default)]
struct Found<'a> {
    /// Labels that nodes bear, in tree order.
    borne: Vec<(&'a Label, &'a Node)>,
    /// Labels that properties refer to, with the node and property that does.
    used: Vec<(&'a Label, &'a Node, &'a str)>,
    /// Nodes with a phandle of their own.
    own: Vec<(u32, &'a Node)>,
}

impl<'a> Phandles<'a> {
    /// Numbers, from [`FIRST_PHANDLE`] in tree order, the nodes that something refers to and that have no
    /// phandle of their own.
    ///
    /// # Errors
    ///
    /// A label or phandle borne twice, a label borne by no node, a tree that is too deep.
    pub(super) fn number(root: &'a Node) -> Result<Self, BlobError> {
        let mut found = Found::default();
        found.walk(root, 0).map_err(|deep| BlobError::TooDeep { path: path_of(root, deep) })?;
        let Found { borne, mut used, mut own } = found;
        // Stable: of the references to one label, the first in the tree stays first.
        used.sort_by_key(|(label, ..)| *label);
        used.dedup_by_key(|(label, ..)| *label);
        check_unique(root, &borne)?;
        own.sort_by_key(|(phandle, _)| *phandle);
        check_own(root, &own)?;
        let mut numbers: Vec<(&Label, u32)> = used.iter().map(|(label, ..)| (*label, 0)).collect();
        let mut free = (FIRST_PHANDLE..=LAST_PHANDLE)
            .filter(|next| own.binary_search_by_key(next, |(phandle, _)| *phandle).is_err());
        for (label, node) in borne {
            let Ok(index) = numbers.binary_search_by_key(&label, |(used, _)| used) else {
                continue;
            };
            if let Some((_, number)) = numbers.get_mut(index) {
                *number = node.get_phandle().or_else(|| free.next()).unwrap_or_default();
            }
        }
        let unknown = used.iter().zip(&numbers).find(|(_, (_, number))| *number == 0);
        if let Some(((label, node, property), _)) = unknown {
            return Err(BlobError::UnknownLabel {
                path: path_of(root, node),
                property: (*property).to_owned(),
                label: (*label).clone(),
            });
        }
        Ok(Self(numbers))
    }

    /// The phandle of the node with this label, if something refers to it.
    pub(super) fn of(&self, label: &Label) -> Option<u32> {
        let index = self.0.binary_search_by_key(&label, |(used, _)| used).ok()?;
        self.0.get(index).map(|(_, number)| *number)
    }

    /// The phandle of `node`: its own, or the one it was given since something refers to it.
    pub(super) fn of_node(&self, node: &Node) -> Option<u32> {
        node.get_phandle().or_else(|| self.of(node.get_label()?))
    }
}

impl<'a> Found<'a> {
    /// Collects what is in and below `node`; fails with the node that lies too deep.
    fn walk(&mut self, node: &'a Node, depth: usize) -> Result<(), &'a Node> {
        if depth >= MAX_DEPTH {
            return Err(node);
        }
        if let Some(label) = node.get_label() {
            self.borne.push((label, node));
        }
        if let Some(phandle) = node.get_phandle() {
            self.own.push((phandle, node));
        }
        for property in node.properties() {
            self.references(node, &property.name, &property.value);
        }
        node.children().iter().try_for_each(|child| self.walk(child, depth.saturating_add(1)))
    }

    /// Collects the labels in a value.
    fn references(&mut self, node: &'a Node, property: &'a str, value: &'a Value) {
        match value {
            Value::Cells(cells) => {
                for cell in cells {
                    if let Cell::Ref(label) = cell {
                        self.used.push((label, node, property));
                    }
                }
            }
            Value::Mixed(parts) => {
                for part in parts {
                    self.references(node, property, part);
                }
            }
            Value::Empty | Value::Strings(_) | Value::Bytes(_) => {}
        }
    }
}

/// Refuses a phandle that two nodes have, and those that stand for none.
fn check_own(root: &Node, sorted: &[(u32, &Node)]) -> Result<(), BlobError> {
    let none = sorted.iter().find(|(phandle, _)| !(1..=LAST_PHANDLE).contains(phandle));
    if let Some((phandle, node)) = none {
        return Err(BlobError::Phandle { path: path_of(root, node), phandle: *phandle });
    }
    let twice = sorted.windows(2).find(|pair| matches!(pair, [(a, _), (b, _)] if a == b));
    match twice {
        Some([(phandle, first), (_, second)]) => Err(BlobError::DuplicatePhandle {
            phandle: *phandle,
            first: path_of(root, first),
            second: path_of(root, second),
        }),
        _ => Ok(()),
    }
}

/// Refuses a label that two nodes bear.
fn check_unique(root: &Node, borne: &[(&Label, &Node)]) -> Result<(), BlobError> {
    let mut sorted = borne.to_vec();
    sorted.sort_by_key(|(label, _)| *label);
    let twice = sorted.windows(2).find(|pair| matches!(pair, [(a, _), (b, _)] if a == b));
    match twice {
        Some([(label, first), (_, second)]) => Err(BlobError::DuplicateLabel {
            label: (*label).clone(),
            first: path_of(root, first),
            second: path_of(root, second),
        }),
        _ => Ok(()),
    }
}
