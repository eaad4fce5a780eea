//! Waiting for descriptors, in a loop that waits on where it has found nothing.

use std::os::fd::RawFd;
use std::time::Duration;

use devices::poll;

/// Waits until one of these can be read from, at most for so long if that is said: whether each can, or its
/// other end is gone. None can where the wait has failed, for want of memory or by a signal.
pub fn until_readable<const N: usize>(fds: [RawFd; N], longest: Option<Duration>) -> [bool; N] {
    let mut waits = fds.map(poll::readable);
    let _ = poll::wait(&mut waits, longest);
    waits.map(|wait| wait.revents != 0)
}

/// Waits until this can be written to, at most for so long.
pub fn until_writable(fd: RawFd, longest: Duration) {
    let _ = poll::wait(&mut [poll::writable(fd)], Some(longest));
}
