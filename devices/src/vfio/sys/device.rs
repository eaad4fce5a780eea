//! The device file: regions, interrupts, reset.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_AMBA, VFIO_DEVICE_FLAGS_PLATFORM, VFIO_DEVICE_FLAGS_RESET,
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE,
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_device_info, vfio_irq_info,
    vfio_irq_set, vfio_region_info,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};

use super::{IoctlError, Request, argsz};

const GET_INFO: Request = Request::new("VFIO_DEVICE_GET_INFO", 7);
const GET_REGION_INFO: Request = Request::new("VFIO_DEVICE_GET_REGION_INFO", 8);
const GET_IRQ_INFO: Request = Request::new("VFIO_DEVICE_GET_IRQ_INFO", 9);
const SET_IRQS: Request = Request::new("VFIO_DEVICE_SET_IRQS", 10);
const RESET: Request = Request::new("VFIO_DEVICE_RESET", 11);

/// What `VFIO_DEVICE_GET_INFO` says of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// It is on the platform bus.
    pub platform: bool,
    /// It is on the AMBA bus.
    pub amba: bool,
    /// VFIO can reset it.
    pub reset: bool,
    /// How many regions it has, indexed from 0.
    pub regions: u32,
    /// How many interrupts it has, indexed from 0.
    pub irqs: u32,
}

/// What `VFIO_DEVICE_GET_REGION_INFO` says of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its size in bytes.
    pub size: u64,
    /// Where it begins in the device file.
    pub offset: u64,
    /// It can be read.
    pub readable: bool,
    /// It can be written.
    pub writable: bool,
    /// It can be mapped into memory.
    pub mappable: bool,
}

/// What `VFIO_DEVICE_GET_IRQ_INFO` says of an interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many vectors are behind the index; 1 on the platform and AMBA buses.
    pub count: u32,
    /// It can signal an eventfd.
    pub eventfd: bool,
    /// It can be masked and unmasked.
    pub maskable: bool,
    /// The host masks it each time it is signalled: a level interrupt.
    pub automasked: bool,
}

/// What `VFIO_DEVICE_SET_IRQS` is to do with the first vector of an index.
#[derive(Clone, Copy, Debug)]
pub enum IrqAction<'a> {
    /// Signal this eventfd for each interrupt, and enable the interrupt on the host.
    SetTrigger(&'a EventFd),
    /// Disable the interrupt on the host and forget its eventfd.
    ClearTrigger,
    /// Unmask the interrupt when this eventfd is signalled.
    SetUnmask(&'a EventFd),
    /// Forget the eventfd of `SetUnmask`.
    ClearUnmask,
    /// Mask it.
    Mask,
    /// Unmask it.
    Unmask,
}

/// The calls that a device file takes; a trait, so that what uses it is tested without VFIO.
pub trait DeviceCalls: fmt::Debug + Send + Sync {
    /// What the device is and has.
    ///
    /// # Errors
    ///
    /// What the kernel refused it with.
    fn info(&self) -> Result<DeviceInfo, IoctlError>;

    /// The region of this index.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is none.
    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError>;

    /// The interrupt of this index.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is none.
    fn irq_info(&self, index: u32) -> Result<IrqInfo, IoctlError>;

    /// Changes the interrupt of this index.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the host couldn't get hold of the line, `EINVAL` if there is no such interrupt or
    /// it can't be masked.
    fn set_irq(&self, index: u32, action: IrqAction<'_>) -> Result<(), IoctlError>;

    /// Resets the device.
    ///
    /// # Errors
    ///
    /// If VFIO has no reset for it, or the device didn't obey.
    fn reset(&self) -> Result<(), IoctlError>;

    /// The file in which the regions are, at [`RegionInfo::offset`].
    fn file(&self) -> &File;
}

/// A device opened through its group.
#[derive(Debug)]
pub struct DeviceFile(File);

impl From<File> for DeviceFile {
    fn from(file: File) -> Self {
        Self(file)
    }
}

/// A `struct vfio_irq_set` with room for one eventfd.
#[repr(C)]
struct IrqSet {
    header: vfio_irq_set,
    eventfd: i32,
}

impl IrqSet {
    fn new(index: u32, action: IrqAction<'_>) -> Self {
        let none = |action| (action | VFIO_IRQ_SET_DATA_NONE, -1, 1);
        let eventfd = |action, fd| (action | VFIO_IRQ_SET_DATA_EVENTFD, fd, 1);
        let (flags, eventfd, count) = match action {
            IrqAction::SetTrigger(fd) => eventfd(VFIO_IRQ_SET_ACTION_TRIGGER, fd.as_raw_fd()),
            // No vectors and no data: the documented way to disable an index.
            IrqAction::ClearTrigger => {
                (VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_NONE, -1, 0)
            }
            IrqAction::SetUnmask(fd) => eventfd(VFIO_IRQ_SET_ACTION_UNMASK, fd.as_raw_fd()),
            IrqAction::ClearUnmask => eventfd(VFIO_IRQ_SET_ACTION_UNMASK, -1),
            IrqAction::Mask => none(VFIO_IRQ_SET_ACTION_MASK),
            IrqAction::Unmask => none(VFIO_IRQ_SET_ACTION_UNMASK),
        };
        let argsz = argsz::<Self>();
        let header = vfio_irq_set { argsz, flags, index, start: 0, count, ..Default::default() };
        Self { header, eventfd }
    }
}

impl DeviceCalls for DeviceFile {
    fn info(&self) -> Result<DeviceInfo, IoctlError> {
        let mut info =
            vfio_device_info { argsz: argsz::<vfio_device_info>(), ..Default::default() };
        // SAFETY: the kernel writes at most `argsz` bytes, the size of `info`.
        let returned = unsafe { ioctl_with_mut_ref(&self.0, GET_INFO.number, &mut info) };
        GET_INFO.check(returned)?;
        Ok(DeviceInfo {
            platform: info.flags & VFIO_DEVICE_FLAGS_PLATFORM != 0,
            amba: info.flags & VFIO_DEVICE_FLAGS_AMBA != 0,
            reset: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            regions: info.num_regions,
            irqs: info.num_irqs,
        })
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError> {
        let mut info =
            vfio_region_info { argsz: argsz::<vfio_region_info>(), index, ..Default::default() };
        // SAFETY: the kernel writes at most `argsz` bytes, the size of `info`.
        let returned = unsafe { ioctl_with_mut_ref(&self.0, GET_REGION_INFO.number, &mut info) };
        GET_REGION_INFO.check(returned)?;
        Ok(RegionInfo {
            size: info.size,
            offset: info.offset,
            readable: info.flags & VFIO_REGION_INFO_FLAG_READ != 0,
            writable: info.flags & VFIO_REGION_INFO_FLAG_WRITE != 0,
            mappable: info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0,
        })
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, IoctlError> {
        let mut info =
            vfio_irq_info { argsz: argsz::<vfio_irq_info>(), index, ..Default::default() };
        // SAFETY: the kernel writes at most `argsz` bytes, the size of `info`.
        let returned = unsafe { ioctl_with_mut_ref(&self.0, GET_IRQ_INFO.number, &mut info) };
        GET_IRQ_INFO.check(returned)?;
        Ok(IrqInfo {
            count: info.count,
            eventfd: info.flags & VFIO_IRQ_INFO_EVENTFD != 0,
            maskable: info.flags & VFIO_IRQ_INFO_MASKABLE != 0,
            automasked: info.flags & VFIO_IRQ_INFO_AUTOMASKED != 0,
        })
    }

    fn set_irq(&self, index: u32, action: IrqAction<'_>) -> Result<(), IoctlError> {
        let set = IrqSet::new(index, action);
        // SAFETY: the kernel reads at most `argsz` bytes, the size of `set`.
        let returned = unsafe { ioctl_with_ref(&self.0, SET_IRQS.number, &set) };
        SET_IRQS.check(returned).map(drop)
    }

    fn reset(&self) -> Result<(), IoctlError> {
        // SAFETY: the request takes no argument.
        RESET.check(unsafe { ioctl(&self.0, RESET.number) }).map(drop)
    }

    fn file(&self) -> &File {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn irq_sets_are_what_the_header_describes() {
        let file = EventFd::new(0).unwrap();
        let fd = file.as_raw_fd();
        // Flags: NONE 1, EVENTFD 4; MASK 8, UNMASK 16, TRIGGER 32.
        let cases = [
            (IrqAction::SetTrigger(&file), 32 | 4, 1, fd),
            (IrqAction::ClearTrigger, 32 | 1, 0, -1),
            (IrqAction::SetUnmask(&file), 16 | 4, 1, fd),
            (IrqAction::ClearUnmask, 16 | 4, 1, -1),
            (IrqAction::Mask, 8 | 1, 1, -1),
            (IrqAction::Unmask, 16 | 1, 1, -1),
        ];
        for (action, flags, count, eventfd) in cases {
            let set = IrqSet::new(8, action);
            let header = &set.header;
            assert_eq!((header.index, header.start), (8, 0), "{action:?}");
            assert_eq!((header.flags, header.count), (flags, count), "{action:?}");
            assert_eq!((header.argsz, set.eventfd), (24, eventfd), "{action:?}");
        }
        assert_eq!(std::mem::offset_of!(IrqSet, eventfd), 20);
    }
}
