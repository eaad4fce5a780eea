//! What the kernel tells of network interfaces that are deleted (rtnetlink(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::super::device_events::DeviceEvents;
use super::super::vhost::Notice;
use super::port::Port;

/// How many messages are taken before the thread that waits for them looks at what else there is.
const BATCH: usize = 64;

/// A socket that becomes readable when an interface of this network namespace changes.
#[derive(Debug)]
pub(super) struct LinkChanges(OwnedFd);

impl LinkChanges {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// The kernel has no netlink, or this process may not use it.
    pub(super) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes numbers.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: made just now, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all zeroes is a valid sockaddr_nl.
        let mut name: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        name.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).unwrap_or_default();
        name.nl_groups = libc::RTMGRP_LINK.unsigned_abs();
        let size = libc::socklen_t::try_from(size_of_val(&name)).unwrap_or_default();
        // SAFETY: the address is valid, of the size given.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(socket))
    }

    /// Takes messages, whatever they say.
    fn drain(&self) {
        let mut byte = 0u8;
        for _ in 0..BATCH {
            // SAFETY: one byte is written; the rest of a message is dropped (netlink(7)).
            let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut byte).cast(), 1) };
            if read < 0 {
                return;
            }
        }
    }
}

/// Looks whether a network's tap is still there whenever an interface has changed.
pub(super) struct LinkWatch {
    changes: Arc<LinkChanges>,
    port: Arc<Port>,
    events: Arc<DeviceEvents>,
}

impl LinkWatch {
    /// Of this tap; the driver is told by `events`.
    pub(super) fn new(
        changes: Arc<LinkChanges>,
        port: Arc<Port>,
        events: Arc<DeviceEvents>,
    ) -> Self {
        Self { changes, port, events }
    }
}

impl Notice for LinkWatch {
    fn fd(&self) -> BorrowedFd<'_> {
        self.changes.0.as_fd()
    }

    fn take(&mut self) -> bool {
        self.changes.drain();
        self.port.look(&self.events)
    }
}
