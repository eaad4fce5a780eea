//! Devices whose queues the host's kernel works on: vhost (the kernel's
//! include/uapi/linux/vhost.h).
//!
//! The ioctls are those of the crate vhost. Addresses of rings are set by one of ours: the crate's
//! refuses a ring that ends where RAM ends.

mod error;
mod watch;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use ::vhost::vhost_kern::VhostKernBackend;
use ::vhost::vhost_kern::vhost_binding::{
    VHOST_NET_SET_BACKEND, VHOST_SET_VRING_ADDR, VHOST_VSOCK_SET_GUEST_CID,
    VHOST_VSOCK_SET_RUNNING, vhost_vring_addr, vhost_vring_file,
};
use ::vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::device::Activation;
use super::queue::VirtQueue;

pub use error::VhostError;
pub(super) use watch::{Notice, Watch};

/// A device of the kernel's.
pub(super) struct Vhost {
    path: &'static str,
    file: File,
    /// Whether it has been made this process's.
    owned: bool,
    /// None: what the crate would look at it for is done here.
    memory: Arc<GuestMemoryMmap>,
}

impl VhostKernBackend for Vhost {
    type AS = Arc<GuestMemoryMmap>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }
}

impl AsRawFd for Vhost {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Vhost {
    /// Opens `/dev/vhost-net` or another.
    ///
    /// # Errors
    ///
    /// The host's kernel has no such device, or this user may not use it.
    pub(super) fn open(path: &'static str) -> Result<Self, VhostError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path).map_err(|source| VhostError::Open { path, source })?;
        Ok(Self { path, file, owned: false, memory: Arc::default() })
    }

    /// The features that it has, those of rings among them.
    pub(super) fn features(&self) -> Result<u64, VhostError> {
        self.get_features().map_err(|e| self.refused("VHOST_GET_FEATURES", e))
    }

    /// Has it know guest RAM and the first `count` of the driver's queues; broken rings will be
    /// signalled to `errors`. `features` are those to accept.
    pub(super) fn set_up(
        &mut self,
        features: u64,
        activation: &Activation,
        count: usize,
        errors: &EventFd,
    ) -> Result<(), VhostError> {
        if !self.owned {
            self.set_owner().map_err(|e| self.refused("VHOST_SET_OWNER", e))?;
            self.owned = true;
        }
        self.set_features(features).map_err(|e| self.refused("VHOST_SET_FEATURES", e))?;
        let regions: Vec<_> = activation.memory.iter().map(region).collect();
        self.set_mem_table(&regions).map_err(|e| self.refused("VHOST_SET_MEM_TABLE", e))?;
        let queues = activation.queues.iter().zip(0..).take(count);
        let mut enabled = 0;
        for (queue, index) in queues.filter(|(queue, index)| usize::from(queue.index()) == *index) {
            self.set_up_ring(index, queue, errors)?;
            enabled += 1;
        }
        if enabled < count {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "a queue isn't enabled");
            return Err(VhostError::Refused {
                path: self.path,
                request: "VHOST_SET_VRING_NUM",
                source,
            });
        }
        Ok(())
    }

    /// Has it know a queue, on which it doesn't work.
    pub(super) fn set_up_ring(
        &self,
        index: usize,
        queue: &VirtQueue,
        errors: &EventFd,
    ) -> Result<(), VhostError> {
        let size = queue.size();
        self.set_vring_num(index, size).map_err(|e| self.refused("VHOST_SET_VRING_NUM", e))?;
        self.set_vring_base(index, 0).map_err(|e| self.refused("VHOST_SET_VRING_BASE", e))?;
        let addresses = self.ring_addresses(index, queue)?;
        // SAFETY: the kernel reads this structure; it checks and uses the addresses as this
        // process's own, which are those of the rings in guest RAM.
        let set = unsafe { ioctl_with_ref(self, VHOST_SET_VRING_ADDR(), &addresses) };
        self.check("VHOST_SET_VRING_ADDR", set)?;
        let (kick, call) = (queue.kick(), queue.call());
        self.set_vring_call(index, call).map_err(|e| self.refused("VHOST_SET_VRING_CALL", e))?;
        self.set_vring_err(index, errors).map_err(|e| self.refused("VHOST_SET_VRING_ERR", e))?;
        self.set_vring_kick(index, kick).map_err(|e| self.refused("VHOST_SET_VRING_KICK", e))
    }

    /// Where a queue's parts are in this process's memory.
    fn ring_addresses(
        &self,
        index: usize,
        queue: &VirtQueue,
    ) -> Result<vhost_vring_addr, VhostError> {
        let entries = usize::from(queue.size());
        let addresses = queue.addresses();
        // Their sizes: virtio 1.2, 2.7.
        let host = |addr, bytes| {
            let slice = queue.memory().get_slice(GuestAddress(addr), bytes);
            slice.map(|slice| slice.ptr_guard_mut().as_ptr() as u64).map_err(|_| {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "not within guest RAM");
                VhostError::Refused { path: self.path, request: "VHOST_SET_VRING_ADDR", source }
            })
        };
        Ok(vhost_vring_addr {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            flags: 0,
            desc_user_addr: host(addresses.descriptors, entries.saturating_mul(16))?,
            avail_user_addr: host(
                addresses.available,
                entries.saturating_mul(2).saturating_add(6),
            )?,
            used_user_addr: host(addresses.used, entries.saturating_mul(8).saturating_add(6))?,
            log_guest_addr: 0,
        })
    }

    /// Has a queue of `/dev/vhost-net` work with this tap; `None` stops it, and returns when the
    /// kernel has.
    pub(super) fn set_tap(&self, index: u32, tap: Option<&File>) -> Result<(), VhostError> {
        let fd = tap.map_or(-1, AsRawFd::as_raw_fd);
        let file = vhost_vring_file { index, fd };
        // SAFETY: the kernel reads this structure.
        let set = unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &file) };
        self.check("VHOST_NET_SET_BACKEND", set)
    }

    /// Claims an address for the guest of `/dev/vhost-vsock`.
    pub(super) fn set_cid(&self, cid: u64) -> Result<(), VhostError> {
        // SAFETY: the kernel reads a number of 64 bits.
        let set = unsafe { ioctl_with_ref(self, VHOST_VSOCK_SET_GUEST_CID(), &cid) };
        self.check("VHOST_VSOCK_SET_GUEST_CID", set)
    }

    /// Has `/dev/vhost-vsock` work on the queues, or stop; it has stopped when this returns.
    pub(super) fn set_running(&self, running: bool) -> Result<(), VhostError> {
        let running = i32::from(running);
        // SAFETY: the kernel reads an integer.
        let set = unsafe { ioctl_with_ref(self, VHOST_VSOCK_SET_RUNNING(), &running) };
        self.check("VHOST_VSOCK_SET_RUNNING", set)
    }

    fn check(&self, request: &'static str, returned: i32) -> Result<(), VhostError> {
        if returned >= 0 {
            return Ok(());
        }
        Err(VhostError::Refused { path: self.path, request, source: io::Error::last_os_error() })
    }

    fn refused(&self, request: &'static str, error: ::vhost::Error) -> VhostError {
        let source = match error {
            ::vhost::Error::IoctlError(source) => source,
            other => io::Error::other(other),
        };
        VhostError::Refused { path: self.path, request, source }
    }
}

/// A part of guest RAM as the kernel is told of it.
fn region(region: &GuestRegionMmap) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        ..VhostUserMemoryRegionInfo::default()
    }
}
