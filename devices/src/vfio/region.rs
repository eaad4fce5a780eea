//! A device's registers: mapped into the guest, or trapped.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use super::sys::{DeviceCalls, IoctlError, Mapping, RegionInfo};
use crate::bus::{Action, MmioDevice};

/// An access to a device's registers that wasn't made, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Not 1, 2, 4 or 8 bytes, or not aligned to its size.
    #[error("an access of {size} bytes at {offset:#x} is none that registers take")]
    Shape {
        /// Where in the region, in bytes.
        offset: u64,
        /// Its size in bytes.
        size: usize,
    },
    /// Not within the region.
    #[error("{size} bytes at {offset:#x} aren't within the region's {region:#x}")]
    Bounds {
        /// Where in the region, in bytes.
        offset: u64,
        /// Its size in bytes.
        size: usize,
        /// The region's size in bytes.
        region: u64,
    },
    /// The region can't be read, or can't be written.
    #[error("the region can't be {0}")]
    Forbidden(&'static str),
    /// The host failed.
    #[error("the host's access at {offset:#x} failed")]
    Host {
        /// Where in the region, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The 32-bit registers of a device, little-endian, as bindings use them.
pub trait Registers {
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

/// One region of an assigned device.
#[derive(Debug)]
pub struct Region {
    device: Arc<dyn DeviceCalls>,
    index: u32,
    info: RegionInfo,
    mapping: Option<Mapping>,
}

/// The size of this host's pages in bytes.
pub fn host_page_size() -> u64 {
    // SAFETY: takes a number, and changes nothing.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
}

/// Whether a region can be mapped on a host with such pages: VFIO permits it, and it is made of
/// whole pages, so that the guest gets nothing but it.
fn mappable(info: &RegionInfo, page_size: u64) -> bool {
    info.mappable && info.areas.is_none() && info.size != 0 && info.size.is_multiple_of(page_size)
}

impl Region {
    /// The region of this index, mapped into this process if it can be on a host whose pages have
    /// `page_size` bytes; `None` for one that is to be trapped in any case.
    ///
    /// # Errors
    ///
    /// If the device has no such region.
    pub fn open(
        device: Arc<dyn DeviceCalls>,
        index: u32,
        page_size: Option<u64>,
    ) -> Result<Self, IoctlError> {
        let info = device.region_info(index)?;
        let page_size = page_size.filter(|page_size| mappable(&info, *page_size));
        let mapping = page_size.map(|_| device.map(&info, 0..info.size));
        let mapping = mapping.and_then(|mapped| {
            mapped
                .inspect_err(|error| {
                    log::warn!("region {index} can't be mapped, so traps: {error}")
                })
                .ok()
        });
        Ok(Self { device, index, info, mapping })
    }

    /// Its index with VFIO, and among the `reg` entries of the device's node.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// Where it is in this process, if it is mapped and so can be the guest's without traps.
    pub fn mapped(&self) -> Option<NonNull<u8>> {
        self.mapping.as_ref().map(Mapping::address)
    }

    /// Reads 1, 2, 4 or 8 bytes at `offset` by one access to the device (8 by two where the region
    /// isn't mapped: the host's kernel splits them).
    ///
    /// # Errors
    ///
    /// If the access is malformed, or fails.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.check(offset, data.len())?;
        if !self.info.readable {
            return Err(AccessError::Forbidden("read"));
        }
        let Some(mapping) = &self.mapping else {
            return self
                .device
                .read(&self.info, offset, data)
                .map_err(|source| AccessError::Host { offset, source });
        };
        let done = match data.len() {
            1 => mapping.read::<u8>(offset).map(|v| data.copy_from_slice(&v.to_ne_bytes())),
            2 => mapping.read::<u16>(offset).map(|v| data.copy_from_slice(&v.to_ne_bytes())),
            4 => mapping.read::<u32>(offset).map(|v| data.copy_from_slice(&v.to_ne_bytes())),
            _ => mapping.read::<u64>(offset).map(|v| data.copy_from_slice(&v.to_ne_bytes())),
        };
        done.ok_or(AccessError::Shape { offset, size: data.len() })
    }

    /// Writes 1, 2, 4 or 8 bytes at `offset`, as [`read`](Self::read) reads them.
    ///
    /// # Errors
    ///
    /// If the access is malformed, or fails.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.check(offset, data.len())?;
        if !self.info.writable {
            return Err(AccessError::Forbidden("written"));
        }
        let Some(mapping) = &self.mapping else {
            return self
                .device
                .write(&self.info, offset, data)
                .map_err(|source| AccessError::Host { offset, source });
        };
        let done = match *data {
            [a] => mapping.write(offset, a),
            [a, b] => mapping.write(offset, u16::from_ne_bytes([a, b])),
            [a, b, c, d] => mapping.write(offset, u32::from_ne_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                mapping.write(offset, u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => None,
        };
        done.ok_or(AccessError::Shape { offset, size: data.len() })
    }

    /// Checks an access's size, alignment and place.
    fn check(&self, offset: u64, size: usize) -> Result<(), AccessError> {
        let length: u64 = match size {
            1 => 1,
            2 => 2,
            4 => 4,
            8 => 8,
            _ => return Err(AccessError::Shape { offset, size }),
        };
        if !offset.is_multiple_of(length) {
            return Err(AccessError::Shape { offset, size });
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.info.size => Ok(()),
            _ => Err(AccessError::Bounds { offset, size, region: self.info.size }),
        }
    }
}

impl Registers for Region {
    fn read32(&self, offset: u64) -> Result<u32, AccessError> {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
        self.write(offset, &value.to_le_bytes())
    }
}

/// A region on the bus: each of the guest's accesses ends up here.
///
/// An access that fails reads as zero and is ignored when written; the first is logged.
#[derive(Debug)]
pub struct TrappedRegion {
    device: String,
    region: Arc<Region>,
    failed: bool,
}

impl TrappedRegion {
    /// Region `region` of the device of this name.
    pub fn new(device: impl Into<String>, region: Arc<Region>) -> Self {
        Self { device: device.into(), region, failed: false }
    }

    fn note(&mut self, result: Result<(), AccessError>) -> bool {
        let Err(error) = result else { return true };
        if !self.failed {
            let index = self.region.index();
            log::warn!("{}, region {index}: a guest's access is ignored: {error}", self.device);
        }
        self.failed = true;
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
