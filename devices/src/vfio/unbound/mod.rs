//! A device that isn't bound to VFIO, as VFIO will present it: from its device tree node and sysfs, so that
//! a guest with it can be planned before anything on the host is changed.
//!
//! It answers [`DeviceCalls`] as VFIO's driver for its bus does. Requests that change a device fail, and
//! its registers are memory; [`UNKNOWN_UNTIL_BOUND`] says what only VFIO knows.

mod pci;
mod platform;

use boot::help::Help;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vmm_sys_util::eventfd::EventFd;

use super::host::ReadError;
use super::uapi::{
    DeviceCalls, DeviceInfo, IoctlError, IrqAction, IrqInfo, Mapping, RegionInfo, memfd,
};

/// What isn't known of such a device.
pub const UNKNOWN_UNTIL_BOUND: &str =
    "whether VFIO can reset it, and what its IOMMU can map, only shows once it is bound";

/// The alignment of regions in the file that holds their contents, in bytes: Arm's largest page.
const REGION_ALIGNMENT: u64 = 1 << 16;

/// Why a device's properties can't be found out.
#[derive(Debug, thiserror::Error)]
pub enum UnboundError {
    /// Sysfs can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The memory for its registers can't be allocated.
    #[error("there is no memory file for {name}'s registers")]
    Memory {
        /// The device.
        name: String,
        /// The error of `memfd_create(2)` or `ftruncate(2)`.
        #[source]
        source: io::Error,
    },
}

impl Help for UnboundError {}

/// A device that isn't bound to VFIO.
#[derive(Debug)]
pub struct UnboundDevice {
    info: DeviceInfo,
    regions: Vec<RegionInfo>,
    irqs: Vec<IrqInfo>,
    /// The contents of its regions.
    file: File,
}

impl UnboundDevice {
    /// A device with these interrupts and regions, whose offsets are set here.
    fn new(
        name: &str,
        info: DeviceInfo,
        mut regions: Vec<RegionInfo>,
        irqs: Vec<IrqInfo>,
    ) -> Result<Self, UnboundError> {
        let mut end = 0_u64;
        for region in &mut regions {
            region.offset = end;
            let size = region.size.checked_next_multiple_of(REGION_ALIGNMENT);
            end = end.saturating_add(size.unwrap_or(u64::MAX));
        }
        let file = memfd(c"unbound")
            .and_then(|file| file.set_len(end).map(|()| file))
            .map_err(|source| UnboundError::Memory { name: name.to_owned(), source })?;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let info = DeviceInfo { regions: number(regions.len()), irqs: number(irqs.len()), ..info };
        Ok(Self { info, regions, irqs, file })
    }
}

/// The element of this index.
fn at<T>(all: &[T], index: u32) -> Option<&T> {
    usize::try_from(index).ok().and_then(|index| all.get(index))
}

impl DeviceCalls for UnboundDevice {
    fn info(&self) -> Result<DeviceInfo, IoctlError> {
        Ok(self.info)
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError> {
        let region = at(&self.regions, index).cloned();
        region.ok_or_else(|| IoctlError::new("VFIO_DEVICE_GET_REGION_INFO", libc::EINVAL))
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, IoctlError> {
        let irq = at(&self.irqs, index).copied();
        irq.ok_or_else(|| IoctlError::new("VFIO_DEVICE_GET_IRQ_INFO", libc::EINVAL))
    }

    fn set_irq(&self, _: u32, _: IrqAction<'_>) -> Result<(), IoctlError> {
        Err(IoctlError::new("VFIO_DEVICE_SET_IRQS", libc::ENODEV))
    }

    fn reset(&self) -> Result<(), IoctlError> {
        Err(IoctlError::new("VFIO_DEVICE_RESET", libc::ENODEV))
    }

    fn set_vectors(&self, _: u32, _: u32, _: &[Option<&EventFd>]) -> Result<(), IoctlError> {
        Err(IoctlError::new("VFIO_DEVICE_SET_IRQS", libc::ENODEV))
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, region.offset.saturating_add(offset))
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, region.offset.saturating_add(offset))
    }

    fn map(&self, region: &RegionInfo, range: Range<u64>) -> io::Result<Mapping> {
        Mapping::new(&self.file, region, range)
    }
}
