//! Devices of other processes: the client of the vfio-user protocol.
//!
//! A server offers a PCI device on a UNIX socket, in VFIO's own terms: [`VfioUserDevice`] is
//! [`DeviceCalls`](crate::vfio::uapi::DeviceCalls) by messages, so that whatever hands a host's PCI function
//! to a guest hands on such a device too.
//!
//! The server is not trusted with this process: every message it sends is bounded, checked and
//! awaited no longer than [it may take](REPLY_TIMEOUT), and what is done to its descriptors is done where
//! nobody waits. One that dies, hangs or answers nonsense makes its device a
//! *failed* one, as if pulled out of its slot: reads give all ones, writes go nowhere, what of it
//! was mapped into the guest becomes memory of ones; one line of the log says who and why, and the
//! guest runs on. It is trusted with the guest: RAM that it was lent can't be taken back.
//!
//! The wire is our own rather than the `vfio_user` crate's client (0.1.7), which asserts on what the
//! server sends, takes error replies for success and waits for ever.
//!
//! (The protocol: `docs/interop/vfio-user.rst` of QEMU 10.1, version 0.9.1 of the text, 0.1 on the
//! wire.)

mod budget;
mod channel;
mod client;
mod connect;
mod device;
mod dma;
mod enable;
mod error;
mod fds;
mod interrupts;
mod json;
mod listener;
mod message;
mod peer;
mod region_file;
mod socket;
mod version;

use std::time::Duration;

pub use self::device::VfioUserDevice;
pub use self::error::VfioUserError;
pub use self::peer::Peer;
pub use self::version::Version;

/// How long a server may keep strait waiting: for all that is asked before a guest has the device,
/// and for an access of the guest's. The guest stands still for this long when a server hangs, once.
/// For all that is asked once the run is ending it is a tenth of this.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
