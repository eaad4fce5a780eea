//! A device as it will be once VFIO has it, as far as its node and sysfs tell: what a guest would
//! get can be looked at before anything on the host is changed.
//!
//! It answers [`DeviceCalls`] as VFIO's driver for its bus does for a device of its kind. What only
//! VFIO can add is [`UNKNOWN_UNTIL_BOUND`]; nothing can be done with it, and its registers are memory.

mod pci;
mod platform;

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use vmm_sys_util::eventfd::EventFd;

use super::host::ReadError;
use super::uapi::{DeviceCalls, DeviceInfo, IoctlError, IrqAction, IrqInfo, Mapping, RegionInfo};

/// What is unknown of such a device.
pub const UNKNOWN_UNTIL_BOUND: &str =
    "whether VFIO can reset it, and what its IOMMU can map, only shows once it is bound";

/// Regions begin at multiples of this in the file that stands for them: the largest page there is.
const REGION_ALIGNMENT: u64 = 1 << 16;

/// Why a device can't be foreseen.
#[derive(Debug, thiserror::Error)]
pub enum UnboundError {
    /// Sysfs can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There is no memory to stand for its registers.
    #[error("there is no file in memory for {name}'s registers")]
    Memory {
        /// The device.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A device that VFIO doesn't have yet.
#[derive(Debug)]
pub struct UnboundDevice {
    info: DeviceInfo,
    regions: Vec<RegionInfo>,
    irqs: Vec<IrqInfo>,
    /// Stands for its registers.
    file: File,
}

impl UnboundDevice {
    /// A device with these regions, whose offsets are given here, and these interrupts.
    fn new(
        name: &str,
        info: DeviceInfo,
        mut regions: Vec<RegionInfo>,
        irqs: Vec<IrqInfo>,
    ) -> Result<Self, UnboundError> {
        let mut end = 0_u64;
        for region in &mut regions {
            region.offset = end;
            end = end.saturating_add(
                region.size.div_ceil(REGION_ALIGNMENT).saturating_mul(REGION_ALIGNMENT),
            );
        }
        let file = memory_file(end)
            .map_err(|source| UnboundError::Memory { name: name.to_owned(), source })?;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let info = DeviceInfo { regions: number(regions.len()), irqs: number(irqs.len()), ..info };
        Ok(Self { info, regions, irqs, file })
    }
}

/// A file in memory of so many bytes, of which none is there before it is written.
fn memory_file(size: u64) -> io::Result<File> {
    // SAFETY: the name is a C string; the call returns a descriptor of ours or -1.
    let fd = unsafe { libc::memfd_create(c"foreseen".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size).map(|()| file)
}

/// The error of what such a device can't do.
fn refused(request: &'static str, errno: c_int) -> IoctlError {
    IoctlError { request, source: io::Error::from_raw_os_error(errno) }
}

/// What has this index.
fn at<T>(all: &[T], index: u32) -> Option<&T> {
    usize::try_from(index).ok().and_then(|index| all.get(index))
}

impl DeviceCalls for UnboundDevice {
    fn info(&self) -> Result<DeviceInfo, IoctlError> {
        Ok(self.info)
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError> {
        let region = at(&self.regions, index).cloned();
        region.ok_or_else(|| refused("VFIO_DEVICE_GET_REGION_INFO", libc::EINVAL))
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, IoctlError> {
        let irq = at(&self.irqs, index).copied();
        irq.ok_or_else(|| refused("VFIO_DEVICE_GET_IRQ_INFO", libc::EINVAL))
    }

    fn set_irq(&self, _: u32, _: IrqAction<'_>) -> Result<(), IoctlError> {
        Err(refused("VFIO_DEVICE_SET_IRQS", libc::ENODEV))
    }

    fn reset(&self) -> Result<(), IoctlError> {
        Err(refused("VFIO_DEVICE_RESET", libc::ENODEV))
    }

    fn set_vectors(&self, _: u32, _: u32, _: &[Option<&EventFd>]) -> Result<(), IoctlError> {
        Err(refused("VFIO_DEVICE_SET_IRQS", libc::ENODEV))
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
