//! The host's live device tree, as the kernel shows it in sysfs.
//!
//! It is the host's data and is trusted no more than a file: sizes, depth and numbers are bounded,
//! symbolic links are followed only where a person or sysfs names a node by one, and whatever is
//! malformed is an error that names the file.

mod address;
mod clock;
mod clock_state;
mod dma;
mod error;
mod interrupt;
mod node;
mod reader;
mod reference;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{fs, io};

pub use address::{BusRange, Ranges};
pub use clock::SYSTEM_CLOCKS;
pub use clock_state::ClockStates;
pub use dma::BusDmaLimit;
pub use error::HostError;
pub use node::{HostNode, HostProperty};
pub use reader::MAX_PROPERTY_SIZE;
pub use reference::Reference;

use reader::{Listing, Reader, in_order, tree_name};

/// Where Linux shows the tree (Documentation/ABI/testing/sysfs-firmware-ofw).
const SYSTEM_TREE: &str = "/sys/firmware/devicetree/base";

/// How many cells an address and a size take in a node's `reg`: its parent's `#address-cells` and
/// `#size-cells`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusCells {
    /// Cells of an address.
    pub address: u32,
    /// Cells of a size.
    pub size: u32,
}

/// The host's tree.
#[derive(Debug)]
pub struct HostTree {
    root: PathBuf,
    /// Directory by phandle, from one scan of the tree when it is first asked for.
    phandles: OnceLock<BTreeMap<u32, PathBuf>>,
}

impl HostTree {
    /// This host's tree.
    ///
    /// # Errors
    ///
    /// The host has none.
    pub fn system() -> Result<Self, HostError> {
        Self::at(Path::new(SYSTEM_TREE))
    }

    /// The tree whose root node is the directory `root`.
    ///
    /// # Errors
    ///
    /// There is no such directory.
    pub fn at(root: &Path) -> Result<Self, HostError> {
        let root = fs::canonicalize(root).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HostError::NoTree { path: root.to_owned() },
            _ => HostError::Read { path: root.to_owned(), source },
        })?;
        Ok(Self { root, phandles: OnceLock::new() })
    }

    /// The node in `directory` with everything below; the directory may be named by a symbolic
    /// link such as `/sys/bus/platform/devices/NAME/of_node`.
    ///
    /// # Errors
    ///
    /// There is no such node, or what is there can't be read or exceeds a bound.
    pub fn node(&self, directory: &Path) -> Result<HostNode, HostError> {
        self.read(directory, true)
    }

    /// The node in `directory` as by [`node`](Self::node), without its children.
    ///
    /// # Errors
    ///
    /// As of [`HostTree::node`].
    pub fn node_alone(&self, directory: &Path) -> Result<HostNode, HostError> {
        self.read(directory, false)
    }

    /// The node at this path of the tree, such as `/soc/dma@2c0a0000`, with everything below.
    ///
    /// # Errors
    ///
    /// As of [`HostTree::node`].
    pub fn node_at(&self, path: &str) -> Result<HostNode, HostError> {
        self.read(&self.root.join(path.trim_start_matches('/')), true)
    }

    /// The node that `node` is a child of, without its children; none for the root and for nodes
    /// from outside this tree.
    ///
    /// # Errors
    ///
    /// It can't be read or exceeds a bound.
    pub fn parent(&self, node: &HostNode) -> Result<Option<HostNode>, HostError> {
        let parent = node.directory.parent().filter(|parent| parent.starts_with(&self.root));
        parent.map(|parent| self.read(parent, false)).transpose()
    }

    /// How `reg` of `node` is to be read.
    ///
    /// # Errors
    ///
    /// The parent can't be read, or its cells are malformed.
    pub fn bus_cells(&self, node: &HostNode) -> Result<BusCells, HostError> {
        match self.parent(node)? {
            Some(parent) => parent.child_cells(),
            None => Ok(BusCells { address: 2, size: 1 }),
        }
    }

    /// The path of a node in the tree, such as `/soc/dma@2c0a0000`.
    pub fn path(&self, node: &HostNode) -> String {
        let below = node.directory().strip_prefix(&self.root).unwrap_or(node.directory());
        let names = below.iter().map(|name| tree_name(&name.to_string_lossy()).to_owned());
        format!("/{}", names.collect::<Vec<_>>().join("/"))
    }

    /// The aliases of nodes: their names, and the nodes' paths (Devicetree Specification, 3.3
    /// "/aliases node"). None where the tree has no such node; those that aren't text are left out.
    ///
    /// # Errors
    ///
    /// The node can't be read or exceeds a bound.
    pub fn aliases(&self) -> Result<Vec<(String, String)>, HostError> {
        let directory = self.root.join("aliases");
        if !directory.is_dir() {
            return Ok(Vec::new());
        }
        let node = self.read(&directory, false)?;
        let aliases = node.properties().iter().filter_map(|property| {
            let path = std::str::from_utf8(property.bytes.strip_suffix(&[0])?).ok()?;
            Some((property.name.clone(), path.to_owned()))
        });
        Ok(aliases.collect())
    }

    /// The node with this phandle, without its children. The first call scans the tree.
    ///
    /// # Errors
    ///
    /// The tree can't be read or exceeds a bound.
    pub fn by_phandle(&self, phandle: u32) -> Result<Option<HostNode>, HostError> {
        let index = match self.phandles.get() {
            Some(index) => index,
            None => {
                let index = self.scan()?;
                self.phandles.get_or_init(|| index)
            }
        };
        index.get(&phandle).map(|directory| self.read(directory, false)).transpose()
    }

    /// Reads the node in `directory`.
    fn read(&self, directory: &Path, deep: bool) -> Result<HostNode, HostError> {
        let resolved = fs::canonicalize(directory).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HostError::NoNode { path: directory.to_owned() },
            _ => HostError::Read { path: directory.to_owned(), source },
        })?;
        let name = match resolved.file_name() {
            Some(name) if resolved != self.root => name
                .to_str()
                .map(|name| tree_name(name).to_owned())
                .ok_or_else(|| HostError::Name { path: resolved.clone() })?,
            _ => String::new(),
        };
        Reader::new(&resolved).node(resolved, name, deep, 0)
    }

    /// Finds the directory of every phandle. Where two nodes share one, the first in the order of
    /// names has it.
    fn scan(&self) -> Result<BTreeMap<u32, PathBuf>, HostError> {
        let mut reader = Reader::new(&self.root);
        let mut index = BTreeMap::new();
        let mut pending = vec![(self.root.clone(), 0_usize)];
        while let Some((directory, depth)) = pending.pop() {
            reader.enter(&directory, depth)?;
            let listing = Listing::of(&directory)?;
            let file = listing
                .properties
                .iter()
                .find(|p| matches!(p.as_str(), "phandle" | "linux,phandle" | "ibm,phandle"));
            if let Some(file) = file {
                let phandle = reader.phandle(&directory.join(file))?;
                index.entry(phandle).or_insert_with(|| directory.clone());
            }
            let below = depth.saturating_add(1);
            let children = in_order(listing.children).into_iter().rev();
            pending.extend(children.map(|child| (directory.join(child), below)));
        }
        Ok(index)
    }
}
