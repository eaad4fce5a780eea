//! The addresses of a device's children: which of them are among its registers, and so in the guest.

use std::ops::Range;

use boot::fdt::host::{BusCells, BusRange, HostError, HostNode, Ranges};

/// A part of a region as the device's children address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Its address on the device's own bus.
    child: u64,
    /// Its size in bytes.
    size: u64,
    /// The region.
    region: usize,
    /// Where in the region it begins, in bytes.
    offset: u64,
}

/// What of a device's own bus is in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    cells: BusCells,
    windows: Vec<Window>,
}

impl Windows {
    /// The windows of a node with `ranges`; `reg` is where its registers are on the bus that it is
    /// on, whose addresses have `above` cells. `None` if it has no `ranges`.
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
        let windows = match host.ranges(above)? {
            Ranges::None => return Ok(None),
            Ranges::Same => reg
                .iter()
                .enumerate()
                .map(|(region, reg)| Window {
                    child: reg.start,
                    size: reg.end.saturating_sub(reg.start),
                    region,
                    offset: 0,
                })
                .collect(),
            Ranges::Entries(entries) => entries
                .iter()
                .flat_map(|entry| {
                    let regions = reg.iter().enumerate();
                    regions.filter_map(|(region, reg)| {
                        let (child, part) = overlap(entry, reg)?;
                        let offset = part.start.checked_sub(reg.start)?;
                        let size = part.end.checked_sub(part.start)?;
                        Some(Window { child, size, region, offset })
                    })
                })
                .collect(),
        };
        Ok(Some(Self { cells, windows }))
    }

    /// The addresses on the device's own bus that are in the guest.
    fn covered(&self) -> Vec<Range<u64>> {
        let covered = self.windows.iter();
        covered.map(|window| window.child..window.child.saturating_add(window.size)).collect()
    }

    /// `ranges` for the guest, where each region is at one of `gpas`, and addresses have two cells.
    pub(super) fn cells(&self, gpas: &[u64]) -> Vec<u32> {
        let mut cells = Vec::new();
        for window in &self.windows {
            let Some(gpa) = gpas.get(window.region) else { continue };
            push(&mut cells, window.child, self.cells.address);
            push(&mut cells, gpa.saturating_add(window.offset), 2);
            push(&mut cells, window.size, self.cells.size);
        }
        cells
    }
}

/// What a node's place means for those below: which of their addresses are in the guest.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The addresses of the bus that are in the guest; `None` where they are the device's own, such
    /// as those of an SPI bus.
    covered: Option<Vec<Range<u64>>>,
    /// The cells of the bus.
    cells: BusCells,
}

impl Place {
    /// Of the nodes right below a device's.
    ///
    /// # Errors
    ///
    /// The device's cells are malformed.
    pub(super) fn in_device(host: &HostNode, windows: Option<&Windows>) -> Result<Self, HostError> {
        Ok(Self { covered: windows.map(Windows::covered), cells: host.child_cells()? })
    }

    /// Of the nodes below `host`, which is here itself.
    pub(super) fn below(&self, host: &HostNode) -> Self {
        let ranges = host.ranges(self.cells.address);
        let covered = self.covered.as_ref().and_then(|covered| match &ranges {
            Ok(ranges) => below(ranges, covered),
            // Unreadable: nothing below is where it should be.
            Err(_) => Some(Vec::new()),
        });
        Self { covered, cells: host.child_cells().unwrap_or(self.cells) }
    }

    /// Why a node that is here can't be in the guest, if it can't.
    pub(super) fn refusal(&self, host: &HostNode) -> Option<&'static str> {
        let covered = self.covered.as_ref()?;
        match host.reg(self.cells) {
            Ok(reg) if reg.iter().all(|range| covers(covered, range)) => None,
            Ok(_) => Some("its registers are none of the device's"),
            Err(_) => Some(UNTRANSLATED),
        }
    }
}

/// Why nodes are left out whose addresses are malformed, or wider than 64 bits.
pub(super) const UNTRANSLATED: &str = "its addresses can't be translated";

/// What of `covered`, on the bus that a node is on, its own children address by its `ranges`.
fn below(ranges: &Ranges, covered: &[Range<u64>]) -> Option<Vec<Range<u64>>> {
    match ranges {
        Ranges::None => None,
        Ranges::Same => Some(covered.to_vec()),
        Ranges::Entries(entries) => Some(
            entries
                .iter()
                .flat_map(|entry| covered.iter().filter_map(|reg| overlap(entry, reg)))
                .map(|(child, part)| {
                    child..child.saturating_add(part.end.saturating_sub(part.start))
                })
                .collect(),
        ),
    }
}

/// Whether all of `range` is in one of `covered`.
fn covers(covered: &[Range<u64>], range: &Range<u64>) -> bool {
    covered.iter().any(|whole| whole.start <= range.start && range.end <= whole.end)
}

/// The part of `range`, on the bus above, that an entry maps: its address on the bus below, and
/// itself.
fn overlap(entry: &BusRange, range: &Range<u64>) -> Option<(u64, Range<u64>)> {
    let start = entry.parent.max(range.start);
    let end = entry.parent.saturating_add(entry.size).min(range.end);
    let child = entry.child.checked_add(start.checked_sub(entry.parent)?)?;
    (start < end).then_some((child, start..end))
}

/// `dma-ranges` of a bus with these cells on the guest's root bus, of which addresses have two.
pub(super) fn dma_ranges(entries: impl IntoIterator<Item = BusRange>, cells: BusCells) -> Vec<u32> {
    let mut all = Vec::new();
    for BusRange { child, parent, size } in entries {
        push(&mut all, child, cells.address);
        push(&mut all, parent, 2);
        push(&mut all, size, cells.size);
    }
    all
}

/// Appends a number of this many cells.
fn push(cells: &mut Vec<u32>, number: u64, count: u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
    let halves = [(number >> 32) as u32, number as u32];
    // Wider numbers were refused when they were read.
    let count = usize::try_from(count).unwrap_or_default().min(2);
    cells.extend(halves.iter().skip(2_usize.saturating_sub(count)));
}
