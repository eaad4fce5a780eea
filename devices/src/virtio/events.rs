//! The eventfds of a queue (eventfd(2)), by system calls alone: the C library's functions are points of
//! cancellation, which takes as many instructions as the rest of them.

use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::EventFd;

/// Signals it. Fails only while as many signals are pending as the counter holds.
pub(super) fn signal(event: &EventFd) {
    let one = 1u64;
    // SAFETY: the eventfd is open, and the call reads 8 bytes.
    unsafe { libc::syscall(libc::SYS_write, event.as_raw_fd(), &raw const one, size_of::<u64>()) };
}

/// Waits until it is signalled; a signal of the process ends the wait, too.
pub(super) fn wait(event: &EventFd) {
    let mut count = 0u64;
    // SAFETY: the eventfd is open, and `count` is the 8 bytes that a read of it fills.
    unsafe { libc::syscall(libc::SYS_read, event.as_raw_fd(), &raw mut count, size_of::<u64>()) };
}
