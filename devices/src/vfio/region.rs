//! A device's registers: mapped into the guest, or trapped.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use boot::order;

use super::uapi::{DeviceCalls, IoctlError, Mapping, RegionInfo};
use crate::bus::{Action, MmioDevice};
use crate::ratelimit::LogLimit;

/// Why an access to a device's registers failed. Offsets are in bytes from the region's start.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Not 1, 2, 4 or 8 bytes, or not aligned to its size.
    #[error("registers can't be accessed by {size} bytes at {offset:#x}")]
    Unaligned {
        /// Where.
        offset: u64,
        /// Its size in bytes.
        size: usize,
    },
    /// Not within the region.
    #[error("{size} bytes at {offset:#x} aren't within the region's {region:#x}")]
    OutOfBounds {
        /// Where.
        offset: u64,
        /// Its size in bytes.
        size: usize,
        /// The region's size in bytes.
        region: u64,
    },
    /// The region can't be read, or can't be written.
    #[error("the region can't be {0}")]
    NotPermitted(&'static str),
    /// The host failed at this offset.
    #[error("the host's access at {0:#x} failed")]
    Host(u64, #[source] io::Error),
}

/// Access to the 32-bit registers of a device, which are little-endian, as bindings need it.
pub trait RegisterAccess {
    /// Reads the register at `offset` bytes.
    ///
    /// # Errors
    ///
    /// If it can't be read.
    fn read32(&self, offset: u64) -> Result<u32, AccessError>;

    /// Writes the register at `offset` bytes, after everything written before.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    fn write32(&self, offset: u64, value: u32) -> Result<(), AccessError>;
}

/// A part of a region that is mapped into this process, to be mapped into the guest. It isn't accessed
/// from here.
#[derive(Debug)]
pub struct Area {
    /// Where it is in the region, in bytes.
    range: Range<u64>,
    mapping: Mapping,
}

impl Area {
    /// Where it is in the region, in bytes.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// Its host virtual address.
    pub fn host(&self) -> NonNull<u8> {
        self.mapping.address()
    }
}

/// One region of an assigned device.
#[derive(Debug)]
pub struct VfioRegion {
    device: Arc<dyn DeviceCalls>,
    index: u32,
    info: RegionInfo,
    /// In order, apart from each other.
    areas: Vec<Area>,
}

/// The size of this host's pages in bytes.
pub fn host_page_size() -> u64 {
    // SAFETY: takes a number, and changes nothing.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
}

/// What of a region can be mapped on a host with such pages: whole pages that VFIO permits to map, to
/// read and to write, and that no hole overlaps. In bytes from the region's start, in order.
///
/// What can only be read, or only be written, isn't mapped: the other access would end the guest's run.
/// It traps.
fn mappable(info: &RegionInfo, page_size: u64, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let whole = 0..info.size;
    let mut free: Vec<Range<u64>> = match &info.areas {
        _ if !(info.mappable && info.readable && info.writable) => Vec::new(),
        Some(areas) => areas.clone(),
        None => vec![whole.clone()],
    };
    for hole in holes {
        let before = |area: &Range<u64>| area.start..area.end.min(hole.start);
        let after = |area: &Range<u64>| area.start.max(hole.end)..area.end;
        free = free.iter().flat_map(|area| [before(area), after(area)]).collect();
    }
    let pages = |area: Range<u64>| {
        let start = area.start.checked_next_multiple_of(page_size)?;
        let end = area.end.min(whole.end);
        Some(start..end - end % page_size).filter(|area| area.start < area.end)
    };
    let mut areas: Vec<Range<u64>> = free.into_iter().filter_map(pages).collect();
    order::sort_by_key(&mut areas, |area| area.start);
    // VFIO lists none twice; one that does would have the guest's slots overlap.
    areas.dedup_by(|next, area| next.start < area.end);
    areas
}

impl VfioRegion {
    /// The region of this index, mapped into this process as far as it can be on a host whose pages
    /// have `page_size` bytes; `None` for one that is to be trapped in any case.
    ///
    /// # Errors
    ///
    /// If the device has no such region.
    pub fn open(
        device: Arc<dyn DeviceCalls>,
        index: u32,
        page_size: Option<u64>,
    ) -> Result<Self, IoctlError> {
        Self::open_around(device, index, page_size, &[])
    }

    /// As [`open`](Self::open), but that no page is mapped that has a part in `holes`, in bytes from
    /// the region's start: accesses to these are to trap.
    ///
    /// # Errors
    ///
    /// If the device has no such region.
    pub fn open_around(
        device: Arc<dyn DeviceCalls>,
        index: u32,
        page_size: Option<u64>,
        holes: &[Range<u64>],
    ) -> Result<Self, IoctlError> {
        let info = device.region_info(index)?;
        let ranges = page_size.map(|page_size| mappable(&info, page_size, holes));
        // Limited: a vfio-user server's region may have any number of areas.
        let log = LogLimit::named(format!("region {index}"));
        let mut areas = Vec::new();
        for range in ranges.unwrap_or_default() {
            match device.map(&info, range.clone()) {
                Ok(mapping) => areas.push(Area { range, mapping }),
                Err(error) => {
                    log.warn(format_args!("can't be mapped at {range:#x?}, so traps: {error}"));
                }
            }
        }
        Ok(Self { device, index, info, areas })
    }

    /// Its index with VFIO, and among the `reg` entries of the device's node.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// What VFIO says of it.
    pub fn info(&self) -> &RegionInfo {
        &self.info
    }

    /// Its parts that are mapped, in order and apart from each other.
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// Unmaps it from this process, before it is mapped into a guest: all accesses will trap.
    pub fn unmap(&mut self) {
        self.areas.clear();
    }

    /// Its host virtual address, if all of it is mapped as one area.
    pub fn mapped(&self) -> Option<NonNull<u8>> {
        let whole = self.areas.first().filter(|area| area.range == (0..self.info.size));
        whole.map(Area::host)
    }

    /// Reads 1, 2, 4 or 8 bytes at `offset` by one access to the device, or as many as the kernel
    /// makes of it.
    ///
    /// Never through a mapping: where a function decodes no memory, or a vfio-user server revokes it,
    /// that would raise SIGBUS; the device file answers with an error.
    ///
    /// # Errors
    ///
    /// If the access is malformed, or fails.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.check(offset, data.len())?;
        if !self.info.readable {
            return Err(AccessError::NotPermitted("read"));
        }
        let read = self.device.read(&self.info, offset, data);
        read.map_err(|error| AccessError::Host(offset, error))
    }

    /// Writes 1, 2, 4 or 8 bytes at `offset`, as [`read`](Self::read) reads them.
    ///
    /// # Errors
    ///
    /// If the access is malformed, or fails.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.check(offset, data.len())?;
        if !self.info.writable {
            return Err(AccessError::NotPermitted("written"));
        }
        let written = self.device.write(&self.info, offset, data);
        written.map_err(|error| AccessError::Host(offset, error))
    }

    /// Checks an access's size, alignment and place.
    fn check(&self, offset: u64, size: usize) -> Result<(), AccessError> {
        let length: u64 = match size {
            1 => 1,
            2 => 2,
            4 => 4,
            8 => 8,
            _ => return Err(AccessError::Unaligned { offset, size }),
        };
        if !offset.is_multiple_of(length) {
            return Err(AccessError::Unaligned { offset, size });
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.info.size => Ok(()),
            _ => Err(AccessError::OutOfBounds { offset, size, region: self.info.size }),
        }
    }
}

impl RegisterAccess for VfioRegion {
    fn read32(&self, offset: u64) -> Result<u32, AccessError> {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
        self.write(offset, &value.to_le_bytes())
    }
}

/// A region on the bus, for accesses that trap.
///
/// A read that fails returns zero, a write that fails is ignored; the first few are logged.
#[derive(Debug)]
pub struct TrappedRegion {
    region: Arc<VfioRegion>,
    log: LogLimit,
}

impl TrappedRegion {
    /// VfioRegion `region` of the device of this name.
    pub fn new(device: impl Into<String>, region: Arc<VfioRegion>) -> Self {
        let log = LogLimit::named(format!("{}, region {}", device.into(), region.index()));
        Self { region, log }
    }

    fn note(&self, result: Result<(), AccessError>) -> bool {
        let Err(error) = result else { return true };
        self.log.warn(format_args!("a guest's access is ignored: {error}"));
        false
    }
}

impl MmioDevice for TrappedRegion {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let result = self.region.read(offset, data);
        if !self.note(result) {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let result = self.region.write(offset, data);
        self.note(result);
        Action::None
    }
}

#[cfg(test)]
mod tests;
