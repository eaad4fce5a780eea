//! The socket device (virtio 1.2, 5.10), whose queues the host's kernel works on.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use boot::help::Help;
use vmm_sys_util::eventfd::EventFd;

use super::device::{Activation, Device, DeviceType};
use super::queue;
use super::vhost::{Vhost, VhostError, Watch};
use crate::ratelimit::LogLimit;
use crate::release;

const PATH: &str = "/dev/vhost-vsock";

/// A driver can have sockets that keep the boundaries of messages (virtio 1.2, 5.10.3).
const VIRTIO_VSOCK_F_SEQPACKET: u64 = 1 << 1;

/// Its queues: received and sent packets, and events, of which there are none without migration.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// The number of queues that the kernel works on.
const KERNEL_QUEUES: usize = 2;

/// The lowest address of a guest: those below are of the hypervisor, of the machine itself and of the
/// host (virtio 1.2, 5.10.4).
pub const FIRST_CID: u64 = 3;

/// The addresses of guests: the highest number stands for any address (linux/vm_sockets.h,
/// `VMADDR_CID_ANY`).
const GUEST_CIDS: Range<u64> = FIRST_CID..u32::MAX as u64;

/// A socket device.
pub struct Vsock {
    cid: u64,
    vhost: Vhost,
    features: u64,
    watch: Watch,
    log: Arc<LogLimit>,
}

/// Why a guest can't have sockets.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Another guest of this host has the address.
    #[error("--vsock cid={0}: another guest of this host has this address")]
    InUse(u64),
    /// It isn't an address of a guest.
    #[error("--vsock cid={0} is no address of a guest, which is {FIRST_CID} to 4294967294")]
    Reserved(u64),
    /// The kernel's device can't be used.
    #[error("--vsock")]
    Vhost(#[from] VhostError),
}

impl Help for VsockError {
    fn help(&self) -> Option<String> {
        match self {
            Self::InUse(cid) => {
                let next = cid.saturating_add(1);
                let other = if GUEST_CIDS.contains(&next) { next } else { FIRST_CID };
                Some(format!("--vsock cid={other}"))
            }
            Self::Reserved(_) => Some(format!("--vsock cid={FIRST_CID}")),
            Self::Vhost(error) => error.help(),
        }
    }
}

impl Vsock {
    /// One with this address (CID), called `name`.
    ///
    /// # Errors
    ///
    /// The host's kernel has no vhost-vsock, this user may not use it, or another guest has the
    /// address.
    pub fn new(name: &str, cid: u64) -> Result<Self, VsockError> {
        if !GUEST_CIDS.contains(&cid) {
            return Err(VsockError::Reserved(cid));
        }
        let vhost = Vhost::open(PATH)?;
        let features = vhost.features()?;
        let in_use = |error: &VhostError| error.is(libc::EADDRINUSE);
        release::wait(|| vhost.set_cid(cid), |set| set.as_ref().is_err_and(in_use))
            .map_err(|error| if in_use(&error) { VsockError::InUse(cid) } else { error.into() })?;
        let log = Arc::new(LogLimit::named(name));
        Ok(Self { cid, vhost, features, watch: Watch::new("vsock-watch"), log })
    }

    fn start(&mut self, activation: &Activation) -> Result<(), io::Error> {
        let features = activation.features & self.features;
        let failed = io::Error::other::<VhostError>;
        let errors = self.watch.errors()?;
        self.vhost.set_up(features, activation, KERNEL_QUEUES, errors).map_err(failed)?;
        self.watch.start(activation.events.clone(), self.log.clone(), None)?;
        self.vhost.set_running(true).map_err(failed)
    }
}

impl Device for Vsock {
    fn device_type(&self) -> DeviceType {
        // virtio 1.2, 5; PCI Code and ID Assignment: other network controller.
        DeviceType { id: 19, class: 0x02_80_00 }
    }

    fn features(&self) -> u64 {
        self.features & VIRTIO_VSOCK_F_SEQPACKET
    }

    fn ring_features(&self) -> u64 {
        self.features & queue::FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        super::device::read_config(&self.cid.to_le_bytes(), offset, data);
    }

    fn prepare(&mut self, _: &[&EventFd]) -> io::Result<()> {
        self.watch.prepare()
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.start(&activation)
    }

    fn stop(&mut self) {
        if self.watch.is_started() {
            // It can't fail for a device that was set up.
            let _ = self.vhost.set_running(false);
            self.watch.stop();
        }
    }

    fn is_stopped(&mut self) -> bool {
        self.watch.is_stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_taken_leads_to_one_that_can_be_had() {
        for (taken, other) in [(3u64, 4u64), (4_294_967_293, 4_294_967_294), (4_294_967_294, 3)] {
            let help = VsockError::InUse(taken).help().unwrap();
            assert_eq!(help, format!("--vsock cid={other}"));
        }
    }
}
