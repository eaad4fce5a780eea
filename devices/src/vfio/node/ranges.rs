//! The addresses of a device's children: which of them are among its registers, and so in the guest.

use std::ops::Range;

use boot::fdt::host::{BusCells, BusRange, HostError, HostNode, Ranges};

/// Why nodes are left out whose addresses are malformed, or wider than 64 bits.
pub(super) const UNTRANSLATED: &str = "its addresses can't be translated";

/// A part of a region as the device's children address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChildRange {
    /// Its address on the device's own bus.
    child: u64,
    /// Its size in bytes.
    size: u64,
    /// The region's index.
    region: usize,
    /// Where in the region it begins, in bytes.
    offset: u64,
}

/// What of a device's own bus is in the guest, by the `ranges` of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChildRanges {
    cells: BusCells,
    ranges: Vec<ChildRange>,
}

impl ChildRanges {
    /// Of a node with `ranges`; `reg` is where its registers are on the bus that it is on, whose
    /// addresses have `above` cells. `None` if it has no `ranges`.
    ///
    /// # Errors
    ///
    /// Its addresses are malformed, or wider than 64 bits as those of PCI.
    pub(super) fn of(
        host: &HostNode,
        reg: &[Range<u64>],
        above: u32,
    ) -> Result<Option<Self>, HostError> {
        let cells = host.child_cells()?;
        let Some(entries) = entries(host.ranges(above)?) else { return Ok(None) };
        let ranges = entries.iter().flat_map(|entry| {
            reg.iter().enumerate().filter_map(|(region, reg)| {
                let (child, part) = overlap(entry, reg)?;
                let offset = part.start.checked_sub(reg.start)?;
                let size = part.end.checked_sub(part.start)?;
                Some(ChildRange { child, size, region, offset })
            })
        });
        Ok(Some(Self { cells, ranges: ranges.collect() }))
    }

    /// The addresses on the device's own bus that are in the guest.
    fn covered(&self) -> Vec<Range<u64>> {
        let ranges = self.ranges.iter();
        ranges.map(|range| range.child..range.child.saturating_add(range.size)).collect()
    }

    /// `ranges` for the guest, where each region is at one of `gpas`, and addresses have two cells.
    pub(super) fn cells(&self, gpas: &[u64]) -> Vec<u32> {
        let entries = self.ranges.iter().filter_map(|range| {
            let parent = gpas.get(range.region)?.saturating_add(range.offset);
            Some(BusRange { child: range.child, parent, size: range.size })
        });
        range_cells(entries, self.cells)
    }
}

/// The addresses of a bus that are in the guest.
#[derive(Clone, Debug)]
pub(super) struct BusScope {
    /// `None` where all are, for they are the device's own, such as those of an SPI bus.
    covered: Option<Vec<Range<u64>>>,
    /// The cells of the bus.
    cells: BusCells,
}

impl BusScope {
    /// Of a device's own bus.
    ///
    /// # Errors
    ///
    /// The device's cells are malformed.
    pub(super) fn of_device(
        host: &HostNode,
        ranges: Option<&ChildRanges>,
    ) -> Result<Self, HostError> {
        Ok(Self { covered: ranges.map(ChildRanges::covered), cells: host.child_cells()? })
    }

    /// Of the bus of `host`, which is on this bus itself.
    pub(super) fn below(&self, host: &HostNode) -> Self {
        let covered = self.covered.as_ref().and_then(|covered| {
            // Unreadable: nothing below is where it should be.
            let Ok(ranges) = host.ranges(self.cells.address) else { return Some(Vec::new()) };
            let parts = entries(ranges)?
                .into_iter()
                .flat_map(|entry| covered.iter().filter_map(move |range| overlap(&entry, range)));
            let below = parts.map(|(child, part)| {
                child..child.saturating_add(part.end.saturating_sub(part.start))
            });
            Some(below.collect())
        });
        Self { covered, cells: host.child_cells().unwrap_or(self.cells) }
    }

    /// Why a node on this bus can't be in the guest, if it can't.
    pub(super) fn refusal(&self, host: &HostNode) -> Option<&'static str> {
        let covered = self.covered.as_ref()?;
        let is_covered = |range: &Range<u64>| {
            covered.iter().any(|whole| whole.start <= range.start && range.end <= whole.end)
        };
        match host.reg(self.cells) {
            Ok(reg) if reg.iter().all(is_covered) => None,
            Ok(_) => Some("its registers are none of the device's"),
            Err(_) => Some(UNTRANSLATED),
        }
    }
}

/// The entries of `ranges`, an empty one being a single entry of all addresses; `None` if there is
/// none.
fn entries(ranges: Ranges) -> Option<Vec<BusRange>> {
    match ranges {
        Ranges::None => None,
        Ranges::Same => Some(vec![BusRange { child: 0, parent: 0, size: u64::MAX }]),
        Ranges::Entries(entries) => Some(entries),
    }
}

/// The part of `range`, on the bus above, that an entry maps: its address on the bus below, and
/// itself.
fn overlap(entry: &BusRange, range: &Range<u64>) -> Option<(u64, Range<u64>)> {
    let start = entry.parent.max(range.start);
    let end = entry.parent.saturating_add(entry.size).min(range.end);
    let child = entry.child.checked_add(start.checked_sub(entry.parent)?)?;
    (start < end).then_some((child, start..end))
}

/// `ranges` or `dma-ranges` of a bus with these cells on the guest's root bus, of which addresses have
/// two.
pub(super) fn range_cells(
    entries: impl IntoIterator<Item = BusRange>,
    cells: BusCells,
) -> Vec<u32> {
    let mut all = Vec::new();
    for BusRange { child, parent, size } in entries {
        for (number, count) in [(child, cells.address), (parent, 2), (size, cells.size)] {
            // Wider numbers were refused when they were read.
            let count = usize::try_from(count).unwrap_or_default().min(2);
            let bytes = number.to_be_bytes();
            let halves = bytes.as_chunks().0.iter().map(|half| u32::from_be_bytes(*half));
            all.extend(halves.skip(2_usize.saturating_sub(count)));
        }
    }
    all
}
