//! Waiting for descriptors (poll(2)).

use std::io;
use std::os::fd::RawFd;

/// No limit.
pub const FOREVER: i32 = -1;

/// Waits until one of these can be read from, at most so many ms: whether each can, or its other end is gone.
///
/// # Errors
///
/// The kernel has no memory.
pub fn until_readable<const N: usize>(fds: [RawFd; N], ms: i32) -> io::Result<[bool; N]> {
    let mut waits = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    poll(&mut waits, ms)?;
    Ok(waits.map(|wait| wait.revents != 0))
}

/// Waits until this can be written to, at most so many ms.
///
/// # Errors
///
/// The kernel has no memory.
pub fn until_writable(fd: RawFd, ms: i32) -> io::Result<()> {
    poll(&mut [libc::pollfd { fd, events: libc::POLLOUT, revents: 0 }], ms)
}

fn poll(waits: &mut [libc::pollfd], ms: i32) -> io::Result<()> {
    let count = libc::nfds_t::try_from(waits.len()).unwrap_or_default();
    // SAFETY: there are `count` of them, and the kernel writes into them alone.
    if unsafe { libc::poll(waits.as_mut_ptr(), count, ms) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        e => Err(e),
    }
}
