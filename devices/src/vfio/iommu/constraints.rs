//! The addresses at which RAM can be mapped for DMA, and at which devices can address it.

use std::ops::RangeInclusive;

use boot::help::Help;
use boot::order;

use super::super::assign::{AssignError, Assignment};
use super::super::host::{Host, ReservedRegion};
use super::super::uapi::IommuInfo;
use super::dma_ranges::{self, Coverage, DmaRanges, list};

/// IOVAs that can't be mapped for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The IOVAs, and what they are reserved for.
    pub region: ReservedRegion,
    /// The assigned devices of the group.
    pub devices: Vec<String>,
}

/// The IOVAs that can be mapped for all assigned devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DmaConstraints {
    reserved: Vec<Reserved>,
    /// What the IOMMU can map; `None` for everything, as long as that is unknown.
    ranges: Option<Vec<RangeInclusive<u64>>>,
    /// The smallest page in bytes; 1 if unknown.
    page: u64,
    /// What the devices can address.
    reaches: Vec<DmaRanges>,
}

/// Why RAM can't be at an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaConstraintError {
    /// It overlaps reserved IOVAs.
    #[error(
        "the guest's RAM at {:#x}-{:#x} can't be mapped for DMA: {:#x}-{:#x} is reserved ({}) for {}",
        ram.start(), ram.end(), reserved.region.start, reserved.region.end, reserved.region.kind,
        reserved.devices.join(", ")
    )]
    Reserved {
        /// The RAM (GPA).
        ram: RangeInclusive<u64>,
        /// The reserved IOVAs.
        reserved: Reserved,
    },
    /// The IOMMU can't map the IOVAs.
    #[error(
        "the guest's RAM at {:#x}-{:#x} can't be mapped for DMA: the IOMMU maps {}",
        ram.start(), ram.end(), list(ranges)
    )]
    OutOfRange {
        /// The RAM (GPA).
        ram: RangeInclusive<u64>,
        /// The IOVAs that it can map.
        ranges: Vec<RangeInclusive<u64>>,
    },
    /// A device can't address it.
    #[error("the guest's RAM at {:#x}-{:#x} is out of reach: {reach}", ram.start(), ram.end())]
    OutOfReach {
        /// The RAM (GPA).
        ram: RangeInclusive<u64>,
        /// The addresses that the device can issue.
        reach: DmaRanges,
    },
    /// It isn't whole pages of the IOMMU.
    #[error(
        "the guest's RAM at {gpa:#x}, {size:#x} bytes, can't be mapped for DMA: the IOMMU maps \
         pages of {page:#x} bytes"
    )]
    Misaligned {
        /// Its GPA.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
        /// The smallest page in bytes.
        page: u64,
    },
}

impl Help for DmaConstraintError {
    fn help(&self) -> Option<String> {
        let (ram, end) = match self {
            Self::Reserved { ram, reserved } => (ram, reserved.region.start),
            Self::OutOfRange { ram, ranges } => {
                let around = ranges.iter().find(|range| range.contains(ram.start()))?;
                (ram, around.end().checked_add(1)?)
            }
            Self::OutOfReach { ram, reach } => {
                let around = reach.ranges.iter().find(|range| range.contains(ram.start()));
                let fits = around.map(|range| (range.end() - ram.start()).saturating_add(1) >> 20);
                return Some(match fits.filter(|fits| *fits > 0) {
                    Some(fits) => format!("give the guest less memory: --memory {fits}M"),
                    None => format!(
                        "a guest's RAM begins at {:#x}, so it can't be given this device",
                        ram.start()
                    ),
                });
            }
            Self::Misaligned { .. } => return None,
        };
        let fits = end.checked_sub(*ram.start())? >> 20;
        (fits > 0)
            .then(|| format!("give the guest less memory: {fits} MiB fit at {:#x}", ram.start()))
    }
}

impl DmaConstraints {
    /// Reads the reserved regions of these devices' groups from sysfs, and the `dma-ranges` of their buses
    /// from the device tree. [`Iommu::open`](super::Iommu::open) adds the IOMMU's own limits.
    ///
    /// # Errors
    ///
    /// Sysfs or the device tree can't be read.
    pub fn of(host: &Host, assignments: &[Assignment]) -> Result<Self, AssignError> {
        let mut groups: Vec<u32> = assignments.iter().map(|assignment| assignment.group).collect();
        order::sort(&mut groups);
        groups.dedup();
        let mut reserved = Vec::new();
        for group in groups {
            let of_group = assignments.iter().filter(|assignment| assignment.group == group);
            let devices: Vec<String> =
                of_group.map(|assignment| assignment.name().to_owned()).collect();
            let regions = host.group(group).reserved_regions()?;
            let enforced = regions.into_iter().filter(ReservedRegion::is_enforced);
            reserved.extend(enforced.map(|region| Reserved { region, devices: devices.clone() }));
        }
        let reaches = dma_ranges::of(host, assignments)?;
        Ok(Self { reserved, ranges: None, page: 1, reaches })
    }

    /// Adds the limits of the IOMMU.
    pub(super) fn limit_to(&mut self, info: &IommuInfo) {
        self.ranges.clone_from(&info.iova_ranges);
        self.page = info.alignment.max(1);
    }

    /// Whether all devices can address `size` bytes at `iova`, mapped or not.
    pub fn reaches(&self, iova: u64, size: u64) -> bool {
        let range = iova..=iova.saturating_add(size.saturating_sub(1));
        self.reaches.iter().all(|reach| reach.coverage(&range) == Coverage::Full)
    }

    /// Checks that `size` bytes at `gpa` can be the guest's RAM: they can be mapped, and every device can
    /// address all of them, or enough if the guest's tree says how much. Returns the limits of devices that
    /// can't address all.
    ///
    /// # Errors
    ///
    /// They can't be mapped, or a device can't address enough of them.
    pub fn check_ram(&self, gpa: u64, size: u64) -> Result<Vec<&DmaRanges>, DmaConstraintError> {
        self.check(gpa, size)?;
        let ram = gpa..=gpa.saturating_add(size.saturating_sub(1));
        let mut parts = Vec::new();
        for reach in &self.reaches {
            match reach.coverage(&ram) {
                Coverage::Full => {}
                Coverage::Partial => parts.push(reach),
                Coverage::Insufficient => {
                    return Err(DmaConstraintError::OutOfReach { ram, reach: reach.clone() });
                }
            }
        }
        Ok(parts)
    }

    /// The lowest address from `from` on at which `size` bytes can be the guest's RAM, with all of it in
    /// reach of every device; a multiple of `alignment`. `None` if there is none.
    pub fn place(&self, from: u64, size: u64, alignment: u64) -> Option<u64> {
        let windows = self.ranges.iter().flatten().map(|range| *range.start());
        let reaches = self.reaches.iter().flat_map(|reach| &reach.ranges);
        let behind = self.reserved.iter().filter_map(|one| one.region.end.checked_add(1));
        let starts = [from].into_iter().chain(windows).chain(reaches.map(|range| *range.start()));
        let starts = starts.chain(behind).filter(|start| *start >= from);
        let aligned = starts.filter_map(|start| start.checked_next_multiple_of(alignment));
        let fits = |start: &u64| self.check(*start, size).is_ok() && self.reaches(*start, size);
        aligned.filter(fits).min()
    }

    /// Checks that `size` bytes of RAM at `gpa` can be mapped at IOVA = GPA.
    ///
    /// # Errors
    ///
    /// They can't be mapped.
    pub fn check(&self, gpa: u64, size: u64) -> Result<(), DmaConstraintError> {
        if size == 0 {
            return Ok(());
        }
        let page = self.page.max(1);
        if !gpa.is_multiple_of(page) || !size.is_multiple_of(page) {
            return Err(DmaConstraintError::Misaligned { gpa, size, page });
        }
        let ram = gpa..=gpa.saturating_add(size - 1);
        let overlapped = self.reserved.iter().find(|Reserved { region, .. }| {
            region.start <= *ram.end() && *ram.start() <= region.end
        });
        if let Some(reserved) = overlapped {
            return Err(DmaConstraintError::Reserved { ram, reserved: reserved.clone() });
        }
        let Some(ranges) = &self.ranges else { return Ok(()) };
        let around = |r: &RangeInclusive<u64>| r.contains(ram.start()) && r.contains(ram.end());
        if ranges.iter().any(around) {
            return Ok(());
        }
        Err(DmaConstraintError::OutOfRange { ram, ranges: ranges.clone() })
    }
}

#[cfg(test)]
mod tests;
