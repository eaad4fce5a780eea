//! A driver's side of a queue, for tests: rings in guest RAM.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::{QueueAddresses, VirtQueue};

/// Flags of a descriptor (virtio 1.2, 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Guest RAM for tests: 1 MiB at GPA 0x4000_0000.
pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const RAM_SIZE: usize = 1 << 20;

pub(crate) fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)]).unwrap()
}

/// A queue as its driver has it: descriptors are used from 0 on, and never again.
pub(crate) struct DriverQueue {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) size: u16,
    pub(crate) addresses: QueueAddresses,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl DriverQueue {
    /// A queue whose parts are in the page at this GPA (for sizes up to 64).
    pub(crate) fn new(memory: &GuestMemoryMmap, page: u64, size: u16) -> Self {
        let addresses =
            QueueAddresses { descriptors: page, available: page + 0x800, used: page + 0xa00 };
        let (next_descriptor, available, used) = Default::default();
        Self { memory: memory.clone(), size, addresses, next_descriptor, available, used }
    }

    /// The device's side of it, with its notification and its interrupt.
    pub(crate) fn device(&self, index: u16, features: u64) -> (VirtQueue, EventFd, EventFd) {
        let kick = EventFd::new(EFD_CLOEXEC).unwrap();
        let call = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
        let events = (kick.try_clone().unwrap(), call.try_clone().unwrap());
        let rings = (self.size, self.addresses);
        let queue = VirtQueue::new(index, rings, features, self.memory.clone(), events).unwrap();
        (queue, kick, call)
    }

    /// Writes a descriptor.
    pub(crate) fn write_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.addresses.descriptors + 16 * u64::from(index));
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, at).unwrap();
    }

    /// Uses descriptors from 0 on again: all chains have come back.
    pub(crate) fn reuse(&mut self) {
        self.next_descriptor = 0;
    }

    /// Makes a chain of these buffers (GPA, size, whether the device writes it) available; answers
    /// its head.
    pub(crate) fn add(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor;
        for (number, (addr, len, write)) in buffers.iter().enumerate() {
            let last = number + 1 == buffers.len();
            let flags = if *write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let index = self.next_descriptor;
            self.write_descriptor(index, *addr, *len, flags, index + 1);
            self.next_descriptor += 1;
        }
        self.make_available(head);
        head
    }

    /// Makes the chain at `head` available.
    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        let at = GuestAddress(self.addresses.available + 4 + 2 * slot);
        self.memory.write_obj(head.to_le(), at).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    /// Sets the index of the available ring.
    pub(crate) fn set_available_index(&self, index: u16) {
        self.memory.write_obj(index.to_le(), GuestAddress(self.addresses.available + 2)).unwrap();
    }

    /// The next chain that the device has given back, if there is one: its head and the bytes
    /// written.
    pub(crate) fn used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.addresses.used + 2)).unwrap();
        if u16::from_le(index) == self.used {
            return None;
        }
        let at = self.addresses.used + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let [head, len]: [u32; 2] =
            [0, 4].map(|offset| self.memory.read_obj(GuestAddress(at + offset)).unwrap());
        Some((u32::from_le(head), u32::from_le(len)))
    }

    /// As [`used`](Self::used), after waiting for it.
    pub(crate) fn wait_used(&mut self) -> (u32, u32) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(used) = self.used() {
                return used;
            }
            assert!(Instant::now() < deadline, "the device gives nothing back");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether an eventfd is signalled within a minute; the signal is taken.
pub(crate) fn wait_signal(event: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 60_000) } == 1;
    ready && event.read().is_ok()
}
