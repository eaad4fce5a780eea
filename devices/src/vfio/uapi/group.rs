//! The group: the devices that the IOMMU can't tell apart.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::path::Path;

use vfio_bindings::bindings::vfio::{VFIO_GROUP_FLAGS_VIABLE, vfio_group_status};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};

use super::{Container, DeviceFile, IoctlError, Request, argsz};

const GET_STATUS: Request = Request::new("VFIO_GROUP_GET_STATUS", 3);
const SET_CONTAINER: Request = Request::new("VFIO_GROUP_SET_CONTAINER", 4);
const GET_DEVICE_FD: Request = Request::new("VFIO_GROUP_GET_DEVICE_FD", 6);

/// What `VFIO_GROUP_GET_STATUS` says of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// None of its devices is bound to a driver that does DMA of its own.
    pub viable: bool,
}

/// A VFIO group (`/dev/vfio/N`). Only one process can have it open.
#[derive(Debug)]
pub struct Group(File);

impl Group {
    /// Opens the group.
    ///
    /// # Errors
    ///
    /// As from `open(2)`; `EBUSY` if somebody else has it open.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }

    /// Whether the group can be used.
    ///
    /// # Errors
    ///
    /// If this isn't a group.
    pub fn status(&self) -> Result<GroupStatus, IoctlError> {
        let mut status = vfio_group_status { argsz: argsz::<vfio_group_status>(), flags: 0 };
        // SAFETY: the kernel writes at most `argsz` bytes, the size of `status`.
        let returned = unsafe { ioctl_with_mut_ref(&self.0, GET_STATUS.number, &mut status) };
        GET_STATUS.check(returned)?;
        Ok(GroupStatus { viable: status.flags & VFIO_GROUP_FLAGS_VIABLE != 0 })
    }

    /// Attaches the group to a container. If that has its IOMMU model already, the group's devices
    /// are confined to the container's mappings from here on.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a device of the group has a driver that does DMA, `EPERM` and `EINVAL` as from
    /// [`Container::set_iommu`].
    pub fn set_container(&self, container: &Container) -> Result<(), IoctlError> {
        let fd = container.as_raw_fd();
        // SAFETY: the kernel reads one 32-bit number, `fd`.
        let returned = unsafe { ioctl_with_ref(&self.0, SET_CONTAINER.number, &fd) };
        SET_CONTAINER.check(returned).map(drop)
    }

    /// Opens one of its devices by the name that sysfs has for it.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the group has no such device bound to a VFIO driver, and whatever its driver
    /// fails with, resetting it included.
    pub fn device(&self, name: &str) -> Result<DeviceFile, IoctlError> {
        let name = CString::new(name)
            .map_err(|_| GET_DEVICE_FD.refused(io::ErrorKind::InvalidInput, "a NUL in the name"))?;
        // SAFETY: the kernel reads a NUL-terminated string.
        let returned = unsafe { ioctl_with_ptr(&self.0, GET_DEVICE_FD.number, name.as_ptr()) };
        GET_DEVICE_FD.check(returned)?;
        // SAFETY: a file descriptor that the kernel made just now and that nobody else has.
        Ok(DeviceFile::from(unsafe { File::from_raw_fd(returned) }))
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
