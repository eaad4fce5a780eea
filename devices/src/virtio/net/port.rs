//! The tap as the queues' threads use it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::device_events::DeviceEvents;
use super::iovecs::IoVecs;
use super::tap;
use crate::ratelimit::LogLimit;

/// What a tap gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A packet of so many bytes, with its header; one more than there was room for if it has more.
    Packet(usize),
    /// Nothing yet.
    Nothing,
    /// A packet that the kernel couldn't hand over, and has dropped.
    Dropped,
    /// Nothing any more.
    Gone,
}

/// A tap that packets of the guest go to and come from.
#[derive(Debug)]
pub(super) struct Port {
    file: Arc<File>,
    /// Its name, for messages.
    name: String,
    gone: AtomicBool,
    log: Arc<LogLimit>,
}

impl Port {
    /// Of this file, whose reads and writes don't block.
    pub(super) fn new(file: Arc<File>, name: String, log: Arc<LogLimit>) -> Self {
        Self { file, name, gone: AtomicBool::new(false), log }
    }

    /// Its file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Its file, to be polled.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether it has been deleted.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// It has been deleted: the log says so once, and the guest that its link is down.
    pub(super) fn lose(&self, events: &DeviceEvents) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            let name = &self.name;
            self.log.warn(format_args!(
                "{name} has been deleted: the guest's link is down for the rest of the run"
            ));
            events.config_changed();
        }
    }

    /// Looks whether it is still there, where no packet tells.
    pub(super) fn look(&self, events: &DeviceEvents) -> bool {
        if tap::is_deleted(&self.file) {
            self.lose(events);
        }
        !self.is_gone()
    }

    /// Sends a packet of the guest. What the tap doesn't take is dropped, as networks do: the header
    /// is wrong, or the interface isn't up.
    pub(super) fn send(&self, packet: &IoVecs, events: &DeviceEvents) {
        if let Err(error) = packet.write_to(&*self.file)
            && is_gone(&error)
        {
            self.lose(events);
        }
    }

    /// Takes the next packet for the guest into these buffers.
    pub(super) fn receive(&self, buffers: &mut IoVecs, events: &DeviceEvents) -> Received {
        match buffers.read_from(&*self.file) {
            Ok(bytes @ 1..) => return Received::Packet(bytes),
            Err(error) if is_transient(&error) => return Received::Nothing,
            // One packet's: its GSO type is none of virtio's, or what was RAM isn't any more. The kernel
            // has taken it from the tap (drivers/net/tun.c, tun_do_read).
            Err(error) if !is_gone(&error) && self.look(events) => {
                self.log.debug(format_args!("a packet from {} was dropped: {error}", self.name));
                return Received::Dropped;
            }
            // A tap has no end of file.
            Ok(0) | Err(_) => self.lose(events),
        }
        Received::Gone
    }
}

/// Whether a later call may succeed.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Whether a tap was deleted: its file has no interface any more (drivers/net/tun.c). The error of an
/// interface that isn't up is EIO.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EPIPE | libc::ECONNRESET))
}
