//! The system calls of VFIO and iommufd: containers, groups and device files, address spaces, and
//! nothing above them.
//!
//! Container and address space are those of the vfio-ioctls crate (0.10), which makes and undoes DMA
//! mappings ([`VfioOps`]). Groups, devices, their regions and interrupts are ours, since the crate
//! refuses devices bound to vfio-amba, takes resampling and unmasking for IRQ index 0 only, takes a
//! shortage of MSI vectors (a positive return) for success, can't start at a vector, shifts the
//! indices of regions behind one that fails, and ignores a failed reset.
//!
//! Numbers and layouts are those of `include/uapi/linux/vfio.h` and `iommufd.h`, the same on every
//! architecture; the order of the calls is described in the kernel's
//! `Documentation/driver-api/vfio.rst` and `Documentation/userspace-api/iommufd.rst`.

mod capability;
mod cdev;
mod container;
mod device;
mod dma;
mod group;
mod iommufd;
mod mapping;
mod region;
mod revocable;

use std::ffi::{c_int, c_uint, c_ulong};
use std::io;

use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};
use vmm_sys_util::ioctl::{_IOC_NONE, ioctl_expr};

pub use container::{Container, IommuInfo};
pub use device::{DeviceCalls, DeviceFile, DeviceInfo, IrqAction, IrqInfo};
pub(super) use dma::refusal;
pub use group::{Group, GroupStatus};
pub use iommufd::{Ioas, Iommufd};
pub use mapping::Mapping;
pub use region::RegionInfo;
pub use revocable::RevocableMappings;
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
    /// Whether the kernel answered with this error number (`libc::E…`).
    pub fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
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

    /// The request's failure with this error number.
    fn failed(self, errno: c_int) -> IoctlError {
        IoctlError { request: self.name, source: io::Error::from_raw_os_error(errno) }
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
    use super::Request;

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
}
