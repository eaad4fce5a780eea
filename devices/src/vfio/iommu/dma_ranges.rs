//! The part of memory that a device can address: the buses between it and its IOMMU limit that by
//! their `dma-ranges` in the host's device tree, of which neither the IOMMU nor VFIO knows.

use std::fmt;
use std::ops::RangeInclusive;

use boot::fdt::host::{HostError, HostTree};

use super::super::assign::{AssignError, Assignment};
use super::super::host::{Host, HostBus};

/// How much of a guest's RAM, from its start, a device must address if its driver copies through
/// bounce buffers: room for a kernel, its initrd and Linux' bounce buffers (`IO_TLB_DEFAULT_SIZE`,
/// 64 MiB). In bytes.
const MIN_PARTIAL: u64 = 256 << 20;

/// The addresses that a device can issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmaRanges {
    /// The device.
    pub device: String,
    /// The path of the bus with the `dma-ranges`.
    pub bus: String,
    /// The addresses (IOVA), ascending and disjoint.
    pub ranges: Vec<RangeInclusive<u64>>,
    /// The guest's tree has these `dma-ranges` too, so that its kernel uses bounce buffers.
    pub in_guest_tree: bool,
}

/// How much of a guest's RAM a device can address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    /// All of it.
    Full,
    /// At least [`MIN_PARTIAL`] from its start.
    Partial,
    /// Less.
    Insufficient,
}

impl DmaRanges {
    /// How much of `ram` (GPA, which is IOVA) the device can address.
    pub(super) fn coverage(&self, ram: &RangeInclusive<u64>) -> Coverage {
        let first = self.ranges.iter().find(|range| range.contains(ram.start()));
        match first {
            Some(range) if range.contains(ram.end()) => Coverage::Full,
            Some(range) if self.in_guest_tree && range.end() - ram.start() >= MIN_PARTIAL - 1 => {
                Coverage::Partial
            }
            _ => Coverage::Insufficient,
        }
    }
}

impl fmt::Display for DmaRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, bus, ranges, .. } = self;
        write!(f, "the bus {bus} lets {device} address {} only (its dma-ranges)", list(ranges))
    }
}

/// The limits of these devices; none for those whose buses have no `dma-ranges`.
pub(super) fn of(host: &Host, assignments: &[Assignment]) -> Result<Vec<DmaRanges>, AssignError> {
    let tree = match HostTree::at(&host.device_tree()) {
        Ok(tree) => tree,
        Err(HostError::NoTree { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(AssignError::Tree(error)),
    };
    let mut all = Vec::new();
    for Assignment { device, .. } in assignments {
        let in_guest_tree = device.bus() != HostBus::Pci;
        let node = if in_guest_tree { device.of_node()? } else { device.host_bridge_node()? };
        let Some(node) = node else { continue };
        let node = tree.node_alone(&node)?;
        let reach = if in_guest_tree {
            tree.bus_dma_limit(&node)?
        } else {
            tree.bus_dma_limit_below(&node)?
        };
        all.extend(reach.map(|reach| DmaRanges {
            device: device.name().to_owned(),
            bus: reach.bus,
            ranges: reach.ranges,
            in_guest_tree,
        }));
    }
    Ok(all)
}

/// Ranges of addresses, for a message.
pub(super) fn list(ranges: &[RangeInclusive<u64>]) -> String {
    if ranges.is_empty() {
        return "nothing".to_owned();
    }
    let range = |r: &RangeInclusive<u64>| format!("{:#x}-{:#x}", r.start(), r.end());
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}
