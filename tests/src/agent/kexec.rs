//! Another kernel instead of the running one (kexec_load(2)).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::CommandError;

/// Load it to be run when this kernel crashes, into the memory of `crashkernel=`
/// (include/uapi/linux/kexec.h).
const ON_CRASH: u64 = 2;

/// Loads a kernel and runs it at once.
pub(crate) fn run(kernel: &str, initrd: &str, cmdline: &str) -> Result<(), CommandError> {
    load(kernel, initrd, cmdline, 0)?;
    // SAFETY: the call takes a number; it returns only if it fails.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    Err(io::Error::last_os_error().into())
}

/// Loads a kernel that runs if this one crashes.
pub(crate) fn on_crash(kernel: &str, initrd: &str, cmdline: &str) -> Result<(), CommandError> {
    load(kernel, initrd, cmdline, ON_CRASH)
}

fn load(kernel: &str, initrd: &str, cmdline: &str, flags: u64) -> Result<(), CommandError> {
    let (kernel, initrd, cmdline) =
        (File::open(kernel)?, File::open(initrd)?, CString::new(cmdline)?);
    // SAFETY: the descriptors are open during the call, and the length is that of the command line
    // with its end, which the call reads.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            cmdline.as_bytes_with_nul().len(),
            cmdline.as_ptr(),
            flags,
        )
    };
    if loaded == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}
