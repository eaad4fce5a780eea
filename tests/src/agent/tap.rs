//! Tap interfaces that outlive who makes them, as `ip tuntap add` makes them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use crate::CommandError;

/// Makes an interface called `name` for a user: a tap, or what `kind` says.
pub(crate) fn make(name: &str, user: u32, kind: &str) -> Result<(), CommandError> {
    let flags = match kind {
        "tap" => libc::IFF_TAP,
        "tun" => libc::IFF_TUN,
        "multi-queue" => libc::IFF_TAP | libc::IFF_MULTI_QUEUE,
        _ => return Err("tap, tun or multi-queue is needed".into()),
    };
    let file = open(name, flags)?;
    for (request, value) in [(libc::TUNSETOWNER, user), (libc::TUNSETPERSIST, 1)] {
        // SAFETY: the argument of either is a number.
        if unsafe { libc::ioctl(file.as_raw_fd(), request, libc::c_ulong::from(value)) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
    Ok(())
}

/// Opens an interface, made if it doesn't exist.
fn open(name: &str, flags: libc::c_int) -> Result<File, CommandError> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags | libc::IFF_NO_PI)?;
    // SAFETY: the kernel reads and writes an ifreq at the pointer.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(file)
}
