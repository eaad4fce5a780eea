//! The kinds of threads that devices have, and what each does first.
//!
//! Devices don't know what may keep a thread from harm; whoever starts them [sets](set_entry) a
//! function that does, once, and each thread calls it before it serves a guest or a peer.

use std::sync::OnceLock;

/// What a thread does for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThreadKind {
    /// Works on a disk's queue.
    Block,
    /// Works on a network device's queue, with a tap.
    Net,
    /// Works on a console's queue.
    Console,
    /// Gives the guest randomness.
    Entropy,
    /// Gives the guest's memory back to the host.
    Balloon,
    /// Waits for what the host's kernel tells of the queues that it works on.
    Vhost,
    /// Makes a virtio function's signals an interrupt by its pin.
    Intx,
    /// Listens to a vfio-user server, looks at its files, or closes them.
    VfioUser,
    /// Writes flash to its file.
    Flash,
    /// Has the connection to a vhost-user backend, or bounds the time that it takes.
    VhostUser,
}

static ENTRY: OnceLock<fn(ThreadKind)> = OnceLock::new();

/// Has each thread call this with its kind before it serves anything; the first one that is set stays.
pub fn set_entry(entry: fn(ThreadKind)) {
    let _ = ENTRY.set(entry);
}

impl ThreadKind {
    /// What a thread of this kind calls before it serves anything.
    pub fn enter(self) {
        if let Some(entry) = ENTRY.get() {
            entry(self);
        }
    }
}
