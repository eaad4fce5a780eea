//! Another process' VFIO device: meddling with its interrupts and its memory behind its back.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::{CommandError, number32};

/// `VFIO_DEVICE_SET_IRQS` (Linux include/uapi/linux/vfio.h).
const SET_IRQS: libc::c_ulong = (0x3b << 8) | 110;
const DATA_NONE: u32 = 1 << 0;
const ACTION_MASK: u32 = 1 << 3;
const ACTION_UNMASK: u32 = 1 << 4;

/// `struct vfio_irq_set` without data.
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
}

/// Masks or unmasks an interrupt of the only VFIO device that a process has open.
pub(crate) fn run(action: &str, process: &str, index: &str) -> Result<(), CommandError> {
    let action = match action {
        "mask" => ACTION_MASK,
        "unmask" => ACTION_UNMASK,
        _ => return Err("neither mask nor unmask".into()),
    };
    let device = device_of(number32(process)?)?;
    let set = IrqSet {
        argsz: u32::try_from(size_of::<IrqSet>())?,
        flags: DATA_NONE | action,
        index: number32(index)?,
        start: 0,
        count: 1,
    };
    // SAFETY: the kernel reads `argsz` bytes of the structure, which outlives the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), SET_IRQS as _, &raw const set) } < 0 {
        return Err(format!("VFIO refuses: {}", io::Error::last_os_error()).into());
    }
    Ok(())
}

/// Where VFIO has a PCI function's command register: in the device file's region 7
/// (`VFIO_PCI_CONFIG_REGION_INDEX`, `VFIO_PCI_INDEX_TO_OFFSET`), at 4.
const COMMAND: libc::off_t = (7 << 40) + 4;
const COMMAND_MEMORY: u16 = 1 << 1;

/// Turns on or off the memory of the only VFIO device, a PCI function, that a process has open.
pub(crate) fn memory(state: &str, process: &str) -> Result<(), CommandError> {
    let device = device_of(number32(process)?)?;
    let mut command = [0; 2];
    let (size, buffer) = (command.len(), command.as_mut_ptr().cast());
    // SAFETY: `buffer` is `size` bytes that may be written.
    if unsafe { libc::pread(device.as_raw_fd(), buffer, size, COMMAND) } != 2 {
        return Err(io::Error::last_os_error().into());
    }
    let command = u16::from_le_bytes(command);
    let command = match state {
        "on" => command | COMMAND_MEMORY,
        "off" => command & !COMMAND_MEMORY,
        _ => return Err("neither on nor off".into()),
    };
    let command = command.to_le_bytes();
    // SAFETY: the kernel reads the two bytes.
    if unsafe { libc::pwrite(device.as_raw_fd(), command.as_ptr().cast(), 2, COMMAND) } != 2 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

/// The process' device, as a descriptor of this one (pidfd_getfd(2)).
fn device_of(process: u32) -> Result<OwnedFd, CommandError> {
    let mut found = None;
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let path = entry?.path();
        // As a group hands it out, or as a file of its own.
        let file = fs::read_link(&path)?.to_string_lossy().into_owned();
        if file.contains("[vfio-device]") || file.starts_with("/dev/vfio/devices/") {
            let number = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            found = Some(number.parse::<libc::c_int>()?);
        }
    }
    let found = found.ok_or("it has no VFIO device open")?;
    let process = owned(
        // SAFETY: takes numbers and returns a new descriptor.
        unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) },
    )?;
    owned(
        // SAFETY: takes numbers and returns a new descriptor.
        unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), found, 0) },
    )
}

/// The new descriptor that a system call returned.
fn owned(returned: libc::c_long) -> Result<OwnedFd, CommandError> {
    let descriptor = libc::c_int::try_from(returned)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: a system call just made it, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
