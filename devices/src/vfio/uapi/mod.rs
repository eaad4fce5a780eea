//! The user-space API of VFIO and iommufd: containers, groups, device files and I/O address spaces.
//!
//! Containers and address spaces are those of the vfio-ioctls crate (0.10), which maps and unmaps for DMA
//! ([`VfioOps`]). Groups, devices, their regions and interrupts are ours, since the crate refuses
//! devices bound to vfio-amba, supports resampling and unmasking for IRQ index 0 only, reports a
//! shortage of MSI vectors (a positive return) as success, can't start at a vector other than 0, shifts
//! the indices of regions behind one that fails, and ignores a failed reset.
//!
//! Numbers and layouts are those of `include/uapi/linux/vfio.h` and `iommufd.h`, the same on every
//! architecture; the order of the calls is described in the kernel's
//! `Documentation/driver-api/vfio.rst` and `Documentation/userspace-api/iommufd.rst`.

mod capability;
mod container;
mod device;
mod hot_reset;
mod iommufd;
mod mapping;
mod region;
mod revocable;

use std::ffi::{c_int, c_uint, c_ulong};
use std::io;

use iommufd_ioctls::IommufdError;
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};
use vmm_sys_util::ioctl::{_IOC_NONE, ioctl_expr};

use crate::stop;

pub use container::{Container, Group, IommuInfo, page_sizes};
pub use device::{DeviceCalls, DeviceFile, DeviceInfo, IrqAction, IrqInfo};
pub use hot_reset::{AffectedFunction, FunctionOwner};
pub use iommufd::{Ioas, Iommufd};
pub use mapping::Mapping;
pub use region::RegionInfo;
pub use revocable::RevocableMappings;
pub(crate) use revocable::memfd;
pub use vfio_ioctls::{VfioError, VfioOps};

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{request} was refused")]
pub struct IoctlError {
    /// The request's name in `linux/vfio.h` or `linux/iommufd.h`.
    pub request: &'static str,
    /// What the kernel answered.
    #[source]
    pub source: io::Error,
}

impl IoctlError {
    /// The kernel refused `request` with this error number (`libc::E…`).
    pub(crate) fn new(request: &'static str, errno: c_int) -> Self {
        Self { request, source: io::Error::from_raw_os_error(errno) }
    }

    /// Fails, as if the kernel had refused `request`, if strait is to stop.
    pub(super) fn check_stop(request: &'static str) -> Result<(), Self> {
        stop::check().map_err(|source| Self { request, source })
    }

    /// Whether the kernel answered with this error number (`libc::E…`).
    pub fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

/// The request behind an error of vfio-ioctls, with the system's error number.
impl From<VfioError> for IoctlError {
    fn from(error: VfioError) -> Self {
        let (request, source) = match error {
            VfioError::OpenContainer(source) => return Self { request: "open", source },
            VfioError::IommuDmaMap(source) => ("VFIO_IOMMU_MAP_DMA", source),
            VfioError::IommuDmaUnmap(source) => ("VFIO_IOMMU_UNMAP_DMA", source),
            VfioError::NewVfioIommufd(IommufdError::IommuIoasAlloc(source)) => {
                ("IOMMU_IOAS_ALLOC", source)
            }
            VfioError::IommufdIoctlError(IommufdError::IommuIoasMap(source)) => {
                ("IOMMU_IOAS_MAP", source)
            }
            VfioError::IommufdIoctlError(IommufdError::IommuIoasUnmap(source)) => {
                ("IOMMU_IOAS_UNMAP", source)
            }
            other => return Self { request: "VFIO", source: io::Error::other(other) },
        };
        Self { request, source: source.into() }
    }
}

/// A request: its name, for messages, and its number.
#[derive(Clone, Copy)]
struct Request {
    name: &'static str,
    number: c_ulong,
}

impl Request {
    /// The request `_IO(VFIO_TYPE, VFIO_BASE + offset)`; VFIO encodes neither size nor direction.
    const fn new(name: &'static str, offset: c_uint) -> Self {
        Self { name, number: ioctl_expr(_IOC_NONE, VFIO_TYPE as c_uint, VFIO_BASE + offset, 0) }
    }

    /// Turns what `ioctl` returned into a result. To be called before anything else can change
    /// `errno`.
    fn check(self, returned: c_int) -> Result<u32, IoctlError> {
        u32::try_from(returned)
            .map_err(|_| IoctlError { request: self.name, source: io::Error::last_os_error() })
    }

    /// The request's failure for a reason found on this side of the system call.
    fn refused(self, kind: io::ErrorKind, why: &'static str) -> IoctlError {
        IoctlError { request: self.name, source: io::Error::new(kind, why) }
    }
}

/// The size of `T` for an `argsz` field.
#[expect(clippy::cast_possible_truncation, reason = "VFIO's structures are a few bytes")]
const fn argsz<T>() -> u32 {
    size_of::<T>() as u32
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::errno;

    use super::*;

    #[test]
    fn request_numbers_are_those_of_the_header() {
        // ';' << 8 | 100 + n: `_IO(';', 100 + n)`.
        for (offset, number) in [(0, 0x3b64), (7, 0x3b6b), (14, 0x3b72)] {
            assert_eq!(Request::new("x", offset).number, number);
        }
    }

    #[test]
    fn a_refusal_names_the_request_and_keeps_the_reason() {
        // SAFETY: an invalid file descriptor; the call touches no memory.
        let returned = unsafe { libc::close(-1) };
        let error = Request::new("VFIO_DEVICE_RESET", 11).check(returned).unwrap_err();
        assert!(error.is(libc::EBADF));
        assert_eq!(error.to_string(), "VFIO_DEVICE_RESET was refused");
    }

    #[test]
    fn the_systems_error_number_is_kept() {
        let enomem = || errno::Error::new(libc::ENOMEM);
        let iommufd = |error| VfioError::IommufdIoctlError(error);
        let cases = [
            (VfioError::IommuDmaMap(enomem()), "VFIO_IOMMU_MAP_DMA"),
            (VfioError::IommuDmaUnmap(enomem()), "VFIO_IOMMU_UNMAP_DMA"),
            (iommufd(IommufdError::IommuIoasMap(enomem())), "IOMMU_IOAS_MAP"),
            (iommufd(IommufdError::IommuIoasUnmap(enomem())), "IOMMU_IOAS_UNMAP"),
        ];
        for (error, request) in cases {
            let refusal = IoctlError::from(error);
            assert!(refusal.request == request && refusal.is(libc::ENOMEM), "{refusal:?}");
        }
        let short = IoctlError::from(VfioError::InvalidDmaUnmapSize);
        assert_eq!(short.source.to_string(), "invalid dma unmap size");
    }
}
