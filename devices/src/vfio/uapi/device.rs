//! The device file: information, regions, interrupts, reset.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;

use serde::Serialize;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_AMBA, VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_PLATFORM,
    VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    vfio_device_info, vfio_irq_info, vfio_irq_set, vfio_region_info,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr};

use super::{
    AffectedFunction, IoctlError, Mapping, RegionInfo, Request, argsz, capability, hot_reset,
};

const GET_INFO: Request = Request::new("VFIO_DEVICE_GET_INFO", 7);
const GET_REGION_INFO: Request = Request::new("VFIO_DEVICE_GET_REGION_INFO", 8);
const GET_IRQ_INFO: Request = Request::new("VFIO_DEVICE_GET_IRQ_INFO", 9);
const SET_IRQS: Request = Request::new("VFIO_DEVICE_SET_IRQS", 10);
const RESET: Request = Request::new("VFIO_DEVICE_RESET", 11);

/// The answer to `VFIO_DEVICE_GET_INFO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// It is on the platform bus.
    pub platform: bool,
    /// It is on the AMBA bus.
    pub amba: bool,
    /// It is on a PCI bus.
    pub pci: bool,
    /// VFIO can reset it.
    pub reset: bool,
    /// How many regions it has, indexed from 0.
    pub regions: u32,
    /// How many interrupts it has, indexed from 0.
    pub irqs: u32,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let buses = [(self.platform, "platform"), (self.amba, "AMBA"), (self.pci, "PCI")];
        let bus = buses.iter().find(|(is_on, _)| *is_on).map_or("another", |(_, bus)| bus);
        let (regions, irqs) = (self.regions, self.irqs);
        write!(f, "one on the {bus} bus with {regions} regions and {irqs} interrupts")
    }
}

/// The answer to `VFIO_DEVICE_GET_IRQ_INFO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IrqInfo {
    /// How many vectors the index has; 1 on the platform and AMBA buses.
    pub count: u32,
    /// It can signal an eventfd.
    pub eventfd: bool,
    /// It can be masked and unmasked.
    pub maskable: bool,
    /// The host masks it each time it is signalled: a level interrupt.
    pub automasked: bool,
}

/// What `VFIO_DEVICE_SET_IRQS` does with the first vector of an index.
#[derive(Clone, Copy, Debug)]
pub enum IrqAction<'a> {
    /// Signal this eventfd for each interrupt, and enable the interrupt on the host.
    SetTrigger(&'a EventFd),
    /// Disable the interrupt on the host and clear its eventfd.
    ClearTrigger,
    /// Unmask the interrupt when this eventfd is signalled.
    SetUnmask(&'a EventFd),
    /// Clear the eventfd of `SetUnmask`.
    ClearUnmask,
    /// Mask it.
    Mask,
    /// Unmask it.
    Unmask,
}

impl fmt::Display for IrqAction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SetTrigger(_) => "enable it on the host",
            Self::ClearTrigger => "disable it on the host",
            Self::SetUnmask(_) => "have an eventfd unmask it",
            Self::ClearUnmask => "clear the eventfd that unmasks it",
            Self::Mask => "mask it",
            Self::Unmask => "unmask it",
        })
    }
}

/// The requests that a device file takes; a trait, so that its users are tested without VFIO.
pub trait DeviceCalls: fmt::Debug + Send + Sync {
    /// What the device is and has.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the file isn't bound yet.
    fn info(&self) -> Result<DeviceInfo, IoctlError>;

    /// The region with this index.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is none.
    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError>;

    /// The interrupt with this index.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is none.
    fn irq_info(&self, index: u32) -> Result<IrqInfo, IoctlError>;

    /// Changes the interrupt with this index.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the host can't request the interrupt, `EINVAL` if there is no such interrupt or
    /// it can't be masked.
    fn set_irq(&self, index: u32, action: IrqAction<'_>) -> Result<(), IoctlError>;

    /// Sets the eventfds of the vectors of this index from `start` on; `None` clears one. The first call
    /// enables as many vectors as are given, on the device too.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are no such vectors or, with MSI, more are enabled already than can be
    /// added to, `ENOSPC` if the host has too few interrupts.
    fn set_vectors(
        &self,
        index: u32,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> Result<(), IoctlError>;

    /// Resets the device.
    ///
    /// # Errors
    ///
    /// VFIO has no reset for it, or the reset failed.
    fn reset(&self) -> Result<(), IoctlError>;

    /// The functions that [`hot_reset`](Self::hot_reset) resets, this one among them.
    ///
    /// # Errors
    ///
    /// `ENODEV` if neither the slot nor the bus of this function can be reset, or it is no PCI function of the
    /// host.
    fn hot_reset_info(&self) -> Result<Vec<AffectedFunction>, IoctlError> {
        Err(IoctlError::new("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", libc::ENODEV))
    }

    /// Resets all functions of the PCI function's slot or bus. `groups` are all of their groups; none for
    /// functions that were opened by their own files, all of which must belong to one iommufd.
    ///
    /// # Errors
    ///
    /// `ENODEV` as for [`hot_reset_info`](Self::hot_reset_info), `EINVAL` if not all of the functions are bound to
    /// VFIO's driver and the caller's, `EBUSY` or `EAGAIN` if the host does something else to one.
    fn hot_reset(&self, groups: &[BorrowedFd<'_>]) -> Result<(), IoctlError> {
        let _ = groups;
        Err(IoctlError::new("VFIO_DEVICE_PCI_HOT_RESET", libc::ENODEV))
    }

    /// Reads at `offset` bytes from the start of a region.
    ///
    /// # Errors
    ///
    /// As from `pread(2)`.
    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes at `offset` bytes from the start of a region.
    ///
    /// # Errors
    ///
    /// As from `pwrite(2)`.
    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Maps a part of a region, in bytes from its start.
    ///
    /// # Errors
    ///
    /// As from `mmap(2)`.
    fn map(&self, region: &RegionInfo, range: Range<u64>) -> io::Result<Mapping>;
}

/// A device, opened through its group or by its own file.
#[derive(Debug)]
pub struct DeviceFile(File);

impl From<File> for DeviceFile {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl AsRawFd for DeviceFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for DeviceFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl DeviceFile {
    fn set_irqs(&self, set: &[u32]) -> Result<u32, IoctlError> {
        // SAFETY: the kernel reads at most `argsz` bytes, the size of `set`.
        SET_IRQS.check(unsafe { ioctl_with_ptr(&self.0, SET_IRQS.number, set.as_ptr()) })
    }
}

/// A `struct vfio_irq_set` with one eventfd, which counts only with `VFIO_IRQ_SET_DATA_EVENTFD`.
fn irq_set(index: u32, action: IrqAction<'_>) -> [u32; 6] {
    let eventfd = |action, fd| (action | VFIO_IRQ_SET_DATA_EVENTFD, fd, 1);
    let (flags, eventfd, count) = match action {
        IrqAction::SetTrigger(fd) => eventfd(VFIO_IRQ_SET_ACTION_TRIGGER, fd.as_raw_fd()),
        // No vectors and no data: the documented way to disable an index.
        IrqAction::ClearTrigger => (VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_NONE, -1, 0),
        IrqAction::SetUnmask(fd) => eventfd(VFIO_IRQ_SET_ACTION_UNMASK, fd.as_raw_fd()),
        IrqAction::ClearUnmask => eventfd(VFIO_IRQ_SET_ACTION_UNMASK, -1),
        IrqAction::Mask => (VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_DATA_NONE, -1, 1),
        IrqAction::Unmask => (VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE, -1, 1),
    };
    [argsz::<[u32; 6]>(), flags, index, 0, count, eventfd.cast_unsigned()]
}

/// A `struct vfio_irq_set` with an eventfd for each vector, -1 for none.
fn vectors(index: u32, start: u32, triggers: &[Option<&EventFd>]) -> Option<Vec<u32>> {
    let count = u32::try_from(triggers.len()).ok()?;
    let argsz = count.checked_mul(4)?.checked_add(argsz::<vfio_irq_set>())?;
    let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
    let fds = triggers.iter().map(|trigger| trigger.map_or(-1, |eventfd| eventfd.as_raw_fd()));
    Some(
        [argsz, flags, index, start, count]
            .into_iter()
            .chain(fds.map(i32::cast_unsigned))
            .collect(),
    )
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
            pci: info.flags & VFIO_DEVICE_FLAGS_PCI != 0,
            reset: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            regions: info.num_regions,
            irqs: info.num_irqs,
        })
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError> {
        let answer = capability::answer::<vfio_region_info>(&self.0, GET_REGION_INFO, index)?;
        Ok(RegionInfo::parse(&answer))
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
        self.set_irqs(&irq_set(index, action)).map(drop)
    }

    fn reset(&self) -> Result<(), IoctlError> {
        // SAFETY: the request takes no argument.
        RESET.check(unsafe { ioctl(&self.0, RESET.number) }).map(drop)
    }

    fn hot_reset_info(&self) -> Result<Vec<AffectedFunction>, IoctlError> {
        hot_reset::info(&self.0)
    }

    fn hot_reset(&self, groups: &[BorrowedFd<'_>]) -> Result<(), IoctlError> {
        hot_reset::reset(&self.0, groups)
    }

    fn set_vectors(
        &self,
        index: u32,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> Result<(), IoctlError> {
        let set = vectors(index, start, triggers)
            .ok_or_else(|| SET_IRQS.refused(io::ErrorKind::InvalidInput, "too many vectors"))?;
        match self.set_irqs(&set)? {
            0 => Ok(()),
            // None was enabled: it is how many could have been (`vfio_msi_enable`).
            _ => Err(IoctlError::new(SET_IRQS.name, libc::ENOSPC)),
        }
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(data, region.offset.saturating_add(offset))
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, region.offset.saturating_add(offset))
    }

    fn map(&self, region: &RegionInfo, range: Range<u64>) -> io::Result<Mapping> {
        Mapping::new(&self.0, region, range)
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
            let expected = [24, flags, 8, 0, count, i32::cast_unsigned(eventfd)];
            assert_eq!(irq_set(8, action), expected, "{action:?}");
        }
        assert_eq!(size_of::<vfio_irq_set>(), 20);
    }

    #[test]
    fn vectors_are_set_by_an_eventfd_each_or_minus_one() {
        let file = EventFd::new(0).unwrap();
        let set = vectors(2, 5, &[Some(&file), None]).unwrap();
        // TRIGGER 32, EVENTFD 4; VFIO_PCI_MSIX_IRQ_INDEX 2.
        let fd = u32::try_from(file.as_raw_fd()).unwrap();
        assert_eq!(set, [28, 32 | 4, 2, 5, 2, fd, u32::MAX]);
    }
}
