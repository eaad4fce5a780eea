//! Client of the vfio-user protocol: PCI devices that other processes serve on a UNIX socket.
//!
//! [`VfioUserDevice`] implements [`DeviceCalls`](crate::vfio::uapi::DeviceCalls) by messages, so that a
//! served device takes the same way into a guest as a PCI function of the host.
//!
//! The server is not trusted with this process: every message that it sends is bounded and checked,
//! every wait for it ends [in time](REPLY_TIMEOUT), and its descriptors are closed and inspected in
//! threads that nobody waits for. When a server dies, hangs or violates the protocol, its device
//! *fails*, as if it were unplugged: reads give all ones, writes are ignored, what of it was mapped into
//! the guest becomes memory of ones. One line of the log tells which and why, and the guest runs on.
//! A server is trusted with the guest: RAM that was shared with it can't be revoked.
//!
//! The wire format is our own rather than that of the `vfio_user` crate's client (0.1.7), which asserts
//! on what the server sends, takes error replies for success and waits without a limit.
//!
//! (Specification: `docs/interop/vfio-user.rst` of QEMU 10.1, version 0.9.1 of the text, 0.1 on the
//! wire.)

mod budget;
mod client;
mod connection;
mod device;
mod dma;
mod error;
mod fds;
mod interrupts;
mod listener;
mod message;
mod regions;
mod version;

use std::time::Duration;

pub use self::device::VfioUserDevice;
pub use self::error::VfioUserError;
pub use self::version::Version;

/// How long a server may keep strait waiting: for all requests before a guest has the device, and for
/// an access of the guest's, which stands still meanwhile. Once the run is ending, a tenth of this is
/// left for all requests.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
