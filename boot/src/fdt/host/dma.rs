//! What of memory a device can address: the `dma-ranges` of the buses between the two (Devicetree
//! Specification, 2.3.9).

use std::ops::RangeInclusive;

use super::address::{BusRange, Ranges};
use super::error::HostError;
use super::node::HostNode;
use super::{BusCells, HostTree};
use crate::fdt::node::MAX_DEPTH;
use crate::order;

/// The most parts into which the buses on the way cut what a device addresses.
const MAX_RANGES: usize = 256;

/// The addresses that the buses let a device issue (Linux: `dev->bus_dma_limit`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusDmaLimit {
    /// The path of the bus that says so: the nearest.
    pub bus: String,
    /// The addresses on that bus, in order and apart. Each leads to memory.
    pub ranges: Vec<RangeInclusive<u64>>,
}

/// A part of what a device addresses, translated from bus to bus.
#[derive(Clone, Copy)]
struct Part {
    /// The address that the device issues.
    issued: u64,
    /// What the bus that was reached calls it.
    here: u64,
    /// How many bytes, less one.
    last: u64,
}

impl HostTree {
    /// The addresses that the device with this node can issue; `None` if no bus says. Behind an
    /// IOMMU they are IOVAs: Linux too hands out no others (`dev->bus_dma_limit`), and has the IOMMU
    /// translate what the device issues, whatever the buses make of it on the way.
    ///
    /// # Errors
    ///
    /// A bus on the way is malformed.
    pub fn bus_dma_limit(&self, node: &HostNode) -> Result<Option<BusDmaLimit>, HostError> {
        match self.dma_parent(node)? {
            Some(bus) => self.bus_dma_limit_below(&bus),
            None => Ok(None),
        }
    }

    /// As [`bus_dma_limit`](Self::bus_dma_limit), of the devices on this bus.
    ///
    /// # Errors
    ///
    /// As for [`bus_dma_limit`](Self::bus_dma_limit).
    pub fn bus_dma_limit_below(&self, bus: &HostNode) -> Result<Option<BusDmaLimit>, HostError> {
        let Some(mut bus) = self.nearest_with_dma_ranges(bus)? else { return Ok(None) };
        let path = self.path(&bus);
        let mut parts: Option<Vec<Part>> = None;
        for _ in 0..MAX_DEPTH {
            let above = self.parent(&bus)?;
            let cells = above.as_ref().unwrap_or(&bus).child_cells()?;
            // One without any, or with an empty one, passes all on as it is.
            if let Ranges::Entries(entries) = bus.dma_ranges(cells.address)? {
                let translated = match &parts {
                    None => entries.iter().filter_map(Part::of).collect(),
                    Some(parts) => {
                        let pairs =
                            parts.iter().flat_map(|part| entries.iter().map(move |e| (part, e)));
                        pairs.filter_map(|(part, entry)| part.through(entry)).collect::<Vec<_>>()
                    }
                };
                if translated.len() > MAX_RANGES {
                    let path = bus.file("dma-ranges");
                    return Err(HostError::TooManyRanges { path, limit: MAX_RANGES });
                }
                parts = Some(translated);
            }
            match self.dma_parent(&bus)? {
                // The root's addresses are the CPU's.
                Some(next) if above.is_some() && self.parent(&next)?.is_some() => bus = next,
                _ => break,
            }
        }
        Ok(Some(BusDmaLimit { bus: path, ranges: merged(parts.unwrap_or_default()) }))
    }

    /// The first bus from this one on whose `dma-ranges` isn't empty, as Linux finds it
    /// (`of_dma_get_range`): a bus above the first that has none at all ends the search.
    fn nearest_with_dma_ranges(&self, bus: &HostNode) -> Result<Option<HostNode>, HostError> {
        let mut next = Some(bus.clone());
        for depth in 0..MAX_DEPTH {
            let Some(bus) = next else { return Ok(None) };
            match bus.bytes("dma-ranges") {
                Some([_, ..]) => return Ok(Some(bus)),
                None if depth > 0 => return Ok(None),
                _ => next = self.dma_parent(&bus)?,
            }
        }
        Ok(None)
    }
}

impl HostNode {
    /// Its `dma-ranges`, to a bus whose addresses have `above` cells. A PCI bus' addresses are those
    /// of its memory space.
    ///
    /// # Errors
    ///
    /// It is malformed, has too many entries, or its numbers have more than 64 bits.
    pub fn dma_ranges(&self, above: u32) -> Result<Ranges, HostError> {
        let cells = self.child_cells()?;
        let pci = cells.address == 3 && self.strings("device_type")?.is_some_and(|t| t == ["pci"]);
        let ranges = match pci {
            true => self.pci_dma_ranges(cells, above)?,
            false => self.bus_ranges("dma-ranges", above)?,
        };
        match ranges {
            Ranges::Entries(entries) if entries.len() > MAX_RANGES => {
                let path = self.file("dma-ranges");
                Err(HostError::TooManyRanges { path, limit: MAX_RANGES })
            }
            ranges => Ok(ranges),
        }
    }

    /// Of a PCI host: entries of its memory space (Open Firmware, PCI Bus Binding, 2.2.1.1).
    fn pci_dma_ranges(&self, cells: BusCells, above: u32) -> Result<Ranges, HostError> {
        const SPACE: u32 = 3 << 24;
        const IO: u32 = 1 << 24;
        let all = self.cells("dma-ranges")?;
        let Some(all) = all else { return Ok(Ranges::None) };
        if all.is_empty() {
            return Ok(Ranges::Same);
        }
        let mut numbers = self.numbers("dma-ranges", &all, [3, above, cells.size])?;
        let mut entries = Vec::new();
        while !numbers.is_empty() {
            let space = numbers.take(1)?;
            let (child, parent) = (numbers.take(2)?, numbers.take(above)?);
            let size = numbers.take(cells.size)?;
            if space & u64::from(SPACE) > u64::from(IO) {
                entries.push(BusRange { child, parent, size });
            }
        }
        Ok(Ranges::Entries(entries))
    }
}

impl Part {
    fn of(entry: &BusRange) -> Option<Self> {
        let last = entry.size.checked_sub(1)?.min(u64::MAX - entry.child);
        Some(Self { issued: entry.child, here: entry.parent, last })
    }

    /// What an entry of the next bus passes on of it.
    fn through(&self, entry: &BusRange) -> Option<Self> {
        let size = entry.size.checked_sub(1)?;
        let start = self.here.max(entry.child);
        let end = self.here.saturating_add(self.last).min(entry.child.saturating_add(size));
        let last = end.checked_sub(start)?;
        Some(Self {
            issued: self.issued.checked_add(start.checked_sub(self.here)?)?,
            here: entry.parent.saturating_add(start.checked_sub(entry.child)?),
            last,
        })
    }
}

/// The addresses that are issued, in order and apart.
fn merged(mut parts: Vec<Part>) -> Vec<RangeInclusive<u64>> {
    order::sort_by_key(&mut parts, |part| part.issued);
    let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
    for part in parts {
        let end = part.issued.saturating_add(part.last);
        match ranges.last_mut() {
            Some(before) if part.issued <= before.end().saturating_add(1) => {
                *before = *before.start()..=end.max(*before.end());
            }
            _ => ranges.push(part.issued..=end),
        }
    }
    ranges
}
