//! Directories and files of sysfs → nodes (Linux `drivers/of/kobj.c`).

use std::cmp::Ordering;
use std::fs::{self, File, FileType};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::HostError;
use super::node::{HostNode, HostProperty};
use crate::fdt::node::MAX_DEPTH;
use crate::order;
use crate::size::MIB;

/// The largest property that is read: a whole device tree at boot has at most as much.
pub const MAX_PROPERTY_SIZE: u64 = 2 * MIB;

/// The bytes of all properties that are read at once.
const MAX_TOTAL_SIZE: u64 = 16 * MIB;

/// The nodes that are read at once; large servers' trees have a few thousand.
const MAX_NODES: usize = 1 << 16;

/// Reads a node and, within bounds, what is below it.
pub(super) struct Reader {
    /// Where reading began, for errors.
    start: PathBuf,
    nodes_left: usize,
    bytes_left: u64,
}

/// What a directory of the tree holds.
pub(super) struct Listing {
    /// Files: the node's properties, sorted by name.
    pub(super) properties: Vec<String>,
    /// Directories: its children, in no order. A bus has hundreds, and most who read its node want none.
    pub(super) children: Vec<String>,
}

impl Reader {
    pub(super) fn new(start: &Path) -> Self {
        Self { start: start.to_owned(), nodes_left: MAX_NODES, bytes_left: MAX_TOTAL_SIZE }
    }

    /// The node in `directory`, with its children where `deep`.
    pub(super) fn node(
        &mut self,
        directory: PathBuf,
        name: String,
        deep: bool,
        depth: usize,
    ) -> Result<HostNode, HostError> {
        self.enter(&directory, depth)?;
        let listing = Listing::of(&directory)?;
        let mut node = HostNode {
            name,
            directory,
            phandle: None,
            properties: Vec::with_capacity(listing.properties.len()),
            children: Vec::new(),
        };
        for name in listing.properties {
            match name.as_str() {
                // Made up by the kernel where the tree has none (`populate_properties`).
                "name" => {}
                "phandle" | "linux,phandle" | "ibm,phandle" => {
                    let path = node.file(&name);
                    node.phandle = Some(self.phandle(&path)?);
                }
                // The host's secrets: readable by root alone, and no business of a guest.
                _ if name.starts_with("security-") => {}
                _ => {
                    let bytes = self.property(&node.file(&name))?;
                    node.properties.push(HostProperty { name, bytes });
                }
            }
        }
        if deep {
            for child in in_order(listing.children) {
                let directory = node.directory.join(&child);
                let name = tree_name(&child).to_owned();
                node.children.push(self.node(directory, name, deep, depth.saturating_add(1))?);
            }
        }
        Ok(node)
    }

    /// Counts a node that is about to be read.
    pub(super) fn enter(&mut self, directory: &Path, depth: usize) -> Result<(), HostError> {
        if depth >= MAX_DEPTH {
            return Err(HostError::TooDeep { path: directory.to_owned(), limit: MAX_DEPTH });
        }
        self.nodes_left = self
            .nodes_left
            .checked_sub(1)
            .ok_or_else(|| HostError::TooMany { path: self.start.clone(), limit: MAX_NODES })?;
        Ok(())
    }

    /// The bytes of the property in the file at `path`.
    pub(super) fn property(&mut self, path: &Path) -> Result<Vec<u8>, HostError> {
        let unreadable = |source| HostError::Read { path: path.to_owned(), source };
        let limit = MAX_PROPERTY_SIZE.min(self.bytes_left);
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
        let Some(left) = limit.checked_sub(bytes.len() as u64) else {
            return Err(if limit < MAX_PROPERTY_SIZE {
                HostError::TooLarge { path: self.start.clone(), limit: MAX_TOTAL_SIZE }
            } else {
                HostError::TooLarge { path: path.to_owned(), limit }
            });
        };
        self.bytes_left = self.bytes_left.saturating_sub(limit.saturating_sub(left));
        Ok(bytes)
    }

    /// The one cell in the file at `path`.
    pub(super) fn phandle(&mut self, path: &Path) -> Result<u32, HostError> {
        let bytes = self.property(path)?;
        let cell = bytes.as_slice().try_into().map_err(|_| HostError::Length {
            path: path.to_owned(),
            expected: "one 32-bit cell",
            length: bytes.len(),
        })?;
        Ok(u32::from_be_bytes(cell))
    }
}

impl Listing {
    /// Lists `directory`.
    pub(super) fn of(directory: &Path) -> Result<Self, HostError> {
        let unreadable = |source| HostError::Read { path: directory.to_owned(), source };
        let mut listing = Self { properties: Vec::new(), children: Vec::new() };
        for entry in fs::read_dir(directory).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let kind = entry.file_type().map_err(unreadable)?;
            let name = entry
                .file_name()
                .into_string()
                .map_err(|_| HostError::Name { path: entry.path() })?;
            listing
                .list(kind)
                .ok_or_else(|| HostError::UnexpectedType { path: entry.path() })?
                .push(name);
        }
        order::sort(&mut listing.properties);
        Ok(listing)
    }

    /// The list for entries of this type. A symbolic link is neither: none is followed, so the
    /// tree can't contain itself.
    fn list(&mut self, kind: FileType) -> Option<&mut Vec<String>> {
        if kind.is_dir() {
            Some(&mut self.children)
        } else if kind.is_file() {
            Some(&mut self.properties)
        } else {
            None
        }
    }
}

/// A node's children sorted by name so that `queue10` comes behind `queue9`: drivers number such by their
/// order, and sysfs doesn't keep that.
pub(super) fn in_order(mut children: Vec<String>) -> Vec<String> {
    order::sort_by(&mut children, |a, b| by_number(tree_name(a), tree_name(b)));
    children
}

/// The order of nodes' names, in which numbers, and unit addresses, count as such.
fn by_number(a: &str, b: &str) -> Ordering {
    parts(a).cmp(&parts(b)).then_with(|| a.cmp(b))
}

/// A node's name: what precedes its number, that number, its unit address.
fn parts(name: &str) -> (&str, (usize, &str), (usize, &str)) {
    let (base, unit) = name.split_once('@').unwrap_or((name, ""));
    let digits = base.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (stem, number) = base.split_at(base.len().saturating_sub(digits));
    (stem, by_value(number), by_value(unit))
}

/// What orders numbers of any length and base.
fn by_value(number: &str) -> (usize, &str) {
    let digits = number.trim_start_matches('0');
    (digits.len(), digits)
}

/// A directory's name as the tree has it: where a property has the same name, Linux appends `#1`
/// (`safe_name`), and `#` can't be part of a node's name.
pub(super) fn tree_name(directory: &str) -> &str {
    match directory.rsplit_once('#') {
        Some((name, number)) if !name.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
            name
        }
        _ => directory,
    }
}

#[cfg(test)]
mod tests {
    use super::by_number;

    #[test]
    fn numbers_and_addresses_count_as_such() {
        let sorted = [
            "a@9",
            "a@10",
            "a@f0000000",
            "a@100000000",
            "queue",
            "queue0",
            "queue2",
            "queue10",
            "queue10@1",
            "queue-10",
            "z",
        ];
        let mut names = sorted.to_vec();
        names.reverse();
        names.sort_unstable_by(|a, b| by_number(a, b));
        assert_eq!(names, sorted);
    }
}
