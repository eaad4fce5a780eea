//! Frontend of the vhost-user protocol: virtio devices whose queues another process works on.
//!
//! The process maps guest RAM and works on the queues by itself: a notification is an eventfd that KVM
//! signals to it, an interrupt one that it signals to KVM. What is asked of it, by a UNIX socket, is
//! what its device offers, and to begin and to end. A [`VhostUserDevice`] is such a device to the
//! transport; a thread of its own has the connection, so that no vCPU waits for the backend.
//!
//! The backend is not trusted with this process: every wait for it ends in time, what it sends is bounded
//! and checked, and when it dies, hangs or violates the protocol, its device alone needs a reset. It is
//! trusted with the guest, whose RAM it has mapped.
//!
//! The protocol is the `vhost` crate's. It waits for ever for a backend that hangs, with whatever timeout
//! its socket has; `deadline` bounds that.
//!
//! (Specification: `docs/interop/vhost-user.rst` of QEMU 10.1.)

mod backend;
mod config;
mod deadline;
mod device;
mod error;
mod kind;
mod options;
mod planned;
mod program;
mod rings;
mod status;
mod worker;

use std::time::Duration;

pub use self::device::VhostUserDevice;
pub use self::error::VhostUserError;
pub use self::kind::{FS, INPUT, Kind, NET};
pub use self::options::{ConfigSource, Options, OwnConfig};
pub use self::planned::PlannedDevice;
pub use self::program::{Connector, Program};
pub use self::worker::Target;

/// How long a backend may take for what is asked of it at once: to tell what it offers, to begin, to end.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 5 });

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
