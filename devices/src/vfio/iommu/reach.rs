//! What of memory the buses between a device and its IOMMU let it address: the host tree's
//! `dma-ranges`, which neither the IOMMU nor VFIO knows of.

use std::fmt;
use std::ops::RangeInclusive;

use boot::fdt::host::{HostError, HostTree};

use super::super::assign::{AssignError, Assignment};
use super::super::host::{Bus, Host};

/// How much of a guest's RAM, from its start on, a device must reach whose driver's buffers
/// elsewhere are copied: room for a kernel, its initrd and what Linux copies to (`IO_TLB_DEFAULT_SIZE`,
/// 64 MiB).
const LEAST: u64 = 256 << 20;

/// The addresses that a device can issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The device.
    pub device: String,
    /// The path of the bus that says so.
    pub bus: String,
    /// The addresses (IOVA), in order and apart.
    pub ranges: Vec<RangeInclusive<u64>>,
    /// Whether the guest's tree says so too, and its kernel copies what is out of reach.
    pub told: bool,
}

/// How much of a guest's RAM a device reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    All,
    /// Enough of it, from its start on.
    Enough,
    /// Too little.
    TooLittle,
}

impl Reach {
    /// How much of `ram` (GPA, which is IOVA) it is.
    pub(super) fn of_ram(&self, ram: &RangeInclusive<u64>) -> Extent {
        let first = self.ranges.iter().find(|range| range.contains(ram.start()));
        match first {
            Some(range) if range.contains(ram.end()) => Extent::All,
            Some(range) if self.told && range.end() - ram.start() >= LEAST - 1 => Extent::Enough,
            _ => Extent::TooLittle,
        }
    }
}

/// What is said of a device that reaches only a part.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, bus, ranges, .. } = self;
        write!(f, "the bus {bus} lets {device} address {} only (its dma-ranges)", list(ranges))
    }
}

/// What is known of these devices; nothing of those whose buses don't say.
pub(super) fn of(host: &Host, assignments: &[Assignment]) -> Result<Vec<Reach>, AssignError> {
    let tree = match HostTree::at(&host.device_tree()) {
        Ok(tree) => tree,
        Err(HostError::NoTree { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(AssignError::Tree(error)),
    };
    let mut all = Vec::new();
    for assignment in assignments {
        let device = &assignment.device;
        let told = device.bus() != Bus::Pci;
        let node = if told { device.of_node()? } else { device.host_bridge_node()? };
        let Some(node) = node else { continue };
        let node = tree.node_alone(&node)?;
        let reach = if told { tree.dma_reach(&node)? } else { tree.dma_reach_below(&node)? };
        all.extend(reach.map(|reach| Reach {
            device: assignment.name().to_owned(),
            bus: reach.bus,
            ranges: reach.ranges,
            told,
        }));
    }
    Ok(all)
}

/// Ranges of addresses, for people.
pub(super) fn list(ranges: &[RangeInclusive<u64>]) -> String {
    if ranges.is_empty() {
        return "nothing".to_owned();
    }
    let range = |r: &RangeInclusive<u64>| format!("{:#x}-{:#x}", r.start(), r.end());
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}
