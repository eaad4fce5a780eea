//! A device's own file: bound to an iommufd before anything else can be done with it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::{DeviceFile, Ioas, IoctlError, Iommufd, Request, argsz};

const BIND_IOMMUFD: Request = Request::new("VFIO_DEVICE_BIND_IOMMUFD", 18);
const ATTACH_IOMMUFD_PT: Request = Request::new("VFIO_DEVICE_ATTACH_IOMMUFD_PT", 19);
const DETACH_IOMMUFD_PT: Request = Request::new("VFIO_DEVICE_DETACH_IOMMUFD_PT", 20);

impl DeviceFile {
    /// Opens a device's own file (`/dev/vfio/devices/vfioN`). Many can have it open; only one can
    /// bind it.
    ///
    /// # Errors
    ///
    /// As from `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self::from)
    }

    /// Makes the iommufd the owner of all that the device does by DMA, and opens the device: its
    /// driver may reset it. From here on it reaches no memory. Only closing the file undoes it.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the device or this file is bound already, `EBUSY` if its group is open, `EPERM` if
    /// interrupts aren't isolated and iommufd's `allow_unsafe_interrupts` is off or if the group has
    /// another owner, and whatever the device's driver fails with.
    pub fn bind(&self, iommufd: &Iommufd) -> Result<(), IoctlError> {
        let mut bind = vfio_device_bind_iommufd {
            argsz: argsz::<vfio_device_bind_iommufd>(),
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        // SAFETY: the structure is complete; the kernel writes the device's number into it.
        let returned = unsafe { ioctl_with_mut_ref(self, BIND_IOMMUFD.number, &mut bind) };
        BIND_IOMMUFD.check(returned).map(drop)
    }

    /// Lets the device reach what is mapped in an address space of the iommufd to which it is bound.
    ///
    /// # Errors
    ///
    /// `EINVAL` if its IOMMU can't have this address space, because of what is mapped where the
    /// device has reserved windows, or if it isn't bound.
    pub fn attach(&self, ioas: &Ioas) -> Result<(), IoctlError> {
        let mut attach = vfio_device_attach_iommufd_pt {
            argsz: argsz::<vfio_device_attach_iommufd_pt>(),
            pt_id: ioas.id(),
            ..Default::default()
        };
        // SAFETY: the structure is complete; the kernel writes the page table's number into it.
        let returned = unsafe { ioctl_with_mut_ref(self, ATTACH_IOMMUFD_PT.number, &mut attach) };
        ATTACH_IOMMUFD_PT.check(returned).map(drop)
    }

    /// Undoes [`attach`](Self::attach): the device reaches no memory.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it isn't bound.
    pub fn detach(&self) -> Result<(), IoctlError> {
        let detach = vfio_device_detach_iommufd_pt {
            argsz: argsz::<vfio_device_detach_iommufd_pt>(),
            ..Default::default()
        };
        // SAFETY: the kernel reads at most `argsz` bytes, the size of `detach`.
        let returned = unsafe { ioctl_with_ref(self, DETACH_IOMMUFD_PT.number, &detach) };
        DETACH_IOMMUFD_PT.check(returned).map(drop)
    }
}
