//! Phandles: the numbers that labels become in a blob.

use super::blob::BlobError;
use super::node::{Cell, Label, Node, Value};

/// The deepest tree that can be written: what vm-fdt takes.
pub(super) const DEPTH_MAX: usize = 64;

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
}

impl<'a> Phandles<'a> {
    /// Numbers, from 1 in tree order, the nodes that something refers to.
    ///
    /// # Errors
    ///
    /// A label borne twice or by no node; a tree that is too deep.
    pub(super) fn number(root: &'a Node) -> Result<Self, BlobError> {
        let mut found = Found::default();
        found.walk(root, 0).map_err(|deep| BlobError::TooDeep { path: path_of(root, deep) })?;
        let Found { borne, mut used } = found;
        // Stable: of the references to one label, the first in the tree stays first.
        used.sort_by_key(|(label, ..)| *label);
        used.dedup_by_key(|(label, ..)| *label);
        check_unique(root, &borne)?;
        let mut numbers: Vec<(&Label, u32)> = used.iter().map(|(label, ..)| (*label, 0)).collect();
        let mut next = 1_u32;
        for (label, _) in borne {
            let Ok(index) = numbers.binary_search_by_key(&label, |(used, _)| used) else {
                continue;
            };
            if let Some((_, number)) = numbers.get_mut(index) {
                *number = next;
                next = next.saturating_add(1);
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
}

impl<'a> Found<'a> {
    /// Collects what is in and below `node`; fails with the node that lies too deep.
    fn walk(&mut self, node: &'a Node, depth: usize) -> Result<(), &'a Node> {
        if depth >= DEPTH_MAX {
            return Err(node);
        }
        if let Some(label) = node.get_label() {
            self.borne.push((label, node));
        }
        for property in node.properties() {
            let Value::Cells(cells) = &property.value else { continue };
            for cell in cells {
                if let Cell::Ref(label) = cell {
                    self.used.push((label, node, &property.name));
                }
            }
        }
        node.children().iter().try_for_each(|child| self.walk(child, depth.saturating_add(1)))
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

/// The path of `target`, which is part of the tree at `root`. Only errors need it.
pub(super) fn path_of(root: &Node, target: &Node) -> String {
    fn find<'a>(node: &'a Node, target: &Node, names: &mut Vec<&'a str>) -> bool {
        if std::ptr::eq(node, target) {
            return true;
        }
        if names.len() >= DEPTH_MAX {
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
