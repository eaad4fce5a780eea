//! The guest's nodes of assigned devices in the forms in which other VMMs read them.
//!
//! The nodes are those of `strait run`, made of the host's own; what is added is how each VMM learns
//! which device a node is of, and which addresses and interrupts the device has in its guests.

mod crosvm;
mod error;
mod qemu;
mod xen;

use std::ops::Range;

use boot::fdt::host::{HostTree, Reference};
use boot::fdt::{Label, Node};

pub use self::error::ExportError;
use super::node::{Alias, GuestNodes, NodeBuilder, alias};
use crate::irq::{Spi, Trigger};

/// Who reads the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// crosvm: an overlay, for `--device-tree-overlay`.
    Crosvm,
    /// Xen: a partial device tree, for domains of dom0less and of xl.
    Xen,
    /// QEMU's `virt`, or whoever else reads a tree: a plain one.
    Qemu,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Crosvm, Self::Xen, Self::Qemu];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crosvm => "crosvm",
            Self::Xen => "xen",
            Self::Qemu => "qemu-dts",
        }
    }
}

/// A device whose node is exported.
#[derive(Clone, Debug)]
pub struct ExportDevice<'a> {
    /// Its name in sysfs.
    pub name: &'a str,
    /// Its node in the guest, refined by its binding and by options.
    pub builder: &'a NodeBuilder,
    /// Where its regions are to be (GPA), as far as a person chose that.
    pub gpas: Vec<Option<u64>>,
}

/// The device tree source for these devices, to be compiled by `dtc`; comments at its beginning say how
/// it is used.
///
/// # Errors
///
/// A device has addresses or interrupts that this VMM can't give to a guest.
pub fn export(
    format: Format,
    tree: &HostTree,
    devices: &[ExportDevice<'_>],
) -> Result<String, ExportError> {
    match format {
        Format::Crosvm => crosvm::export(tree, devices),
        Format::Xen => xen::export(tree, devices),
        Format::Qemu => qemu::export(tree, devices),
    }
}

impl ExportDevice<'_> {
    /// Where its regions are on the host, by physical address.
    fn regions(&self) -> Result<Vec<Range<u64>>, ExportError> {
        let known = |(index, address): (usize, &Result<Range<u64>, String>)| {
            let name = self.name.to_owned();
            address.clone().map_err(|why| ExportError::Address { name, index, why })
        };
        self.builder.addresses.iter().enumerate().map(known).collect()
    }

    /// Where a region is to be, if a person chose that.
    fn chosen(&self, index: usize) -> Option<u64> {
        self.gpas.get(index).copied().flatten()
    }

    /// Its interrupts on the host.
    fn interrupts(&self, tree: &HostTree) -> Vec<Reference> {
        tree.interrupts(self.builder.host_node()).unwrap_or_else(|error| {
            log::warn!("{}: its interrupts aren't known: {error}", self.name);
            Vec::new()
        })
    }
}

/// The SPI of a GIC that an interrupt of the host is, if it is one (arm,gic-v3.yaml: type 0).
fn spi(interrupt: &Reference) -> Option<Spi> {
    let compatible = interrupt.provider.strings("compatible").ok().flatten().unwrap_or_default();
    let is_gic = compatible.iter().any(|string| string.contains("gic"));
    match interrupt.arguments.as_slice() {
        [0, number, _flags, ..] if is_gic => Some(Spi(*number)),
        _ => None,
    }
}

/// How it signals; most are level-triggered where the host's node doesn't say.
fn trigger(interrupt: &Reference) -> Trigger {
    match interrupt.is_level_triggered() {
        Some(false) => Trigger::Edge,
        Some(true) | None => Trigger::Level,
    }
}

/// A node whose children have addresses and sizes of two cells.
fn with_cells(node: Node) -> Node {
    node.u32("#address-cells", 2).u32("#size-cells", 2)
}

/// An interrupt controller to which nodes refer, of which the VMM has the rest.
fn gic(name: &str) -> Node {
    Node::new(name).label("gic").flag("interrupt-controller").u32("#interrupt-cells", 3)
}

/// The clocks to which the nodes refer, in a node of their own; nothing where there are none.
fn clocks(nodes: &[GuestNodes]) -> Option<Node> {
    let all: Vec<Node> = nodes.iter().flat_map(|nodes| nodes.clocks.iter().cloned()).collect();
    (!all.is_empty()).then(|| Node::new("clocks").with_children(all))
}

/// The aliases of the nodes, which are below `parent`; nothing where there are none.
fn aliases(nodes: &[GuestNodes], parent: &str) -> Result<Option<Node>, ExportError> {
    let below = |alias: &Alias| Alias { path: format!("{parent}{}", alias.path), ..alias.clone() };
    let all = nodes.iter().flat_map(|nodes| nodes.aliases.iter().map(below)).collect();
    let all = alias::resolve(&[], all)?;
    Ok((!all.is_empty()).then(|| alias::node(&all)))
}

/// The name without its ending of the file that the comments speak of.
fn file_name<'a>(devices: &[ExportDevice<'a>]) -> &'a str {
    devices.first().map_or("device", |device| device.name)
}

/// The devices' names, as prose has them.
fn names(devices: &[ExportDevice<'_>]) -> String {
    devices.iter().map(|device| device.name).collect::<Vec<_>>().join(", ")
}

/// Lines as comments of a source.
fn comment(lines: &str) -> String {
    lines.lines().map(|line| format!("// {line}").trim_end().to_owned() + "\n").collect()
}

/// The label of a device's node.
fn label(nodes: &GuestNodes) -> &str {
    nodes.device.get_label().map_or("", Label::as_str)
}
