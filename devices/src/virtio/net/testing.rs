//! A driver in tests: the other end of a queue.

use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::super::queue::{self, QueueAddresses, VirtQueue};

/// A descriptor's flags (virtio 1.2, 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// The size of guest RAM, which begins at 0.
pub const RAM_SIZE: u64 = 4 << 20;

/// Guest RAM.
pub fn memory() -> GuestMemoryMmap {
    let size = usize::try_from(RAM_SIZE).unwrap();
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

/// A driver of one queue, with `VIRTIO_F_EVENT_IDX`.
pub struct FakeDriver {
    pub memory: GuestMemoryMmap,
    pub kick: EventFd,
    pub call: EventFd,
    index: u16,
    size: u16,
    addresses: QueueAddresses,
    free: u16,
    available: u16,
    seen: u16,
}

impl FakeDriver {
    /// Of queue `index`, whose rings are from `base` on.
    pub fn new(memory: GuestMemoryMmap, index: u16, size: u16, base: u64) -> Self {
        let available = base + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let addresses = QueueAddresses { descriptors: base, available, used };
        let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        Self { memory, kick, call, index, size, addresses, free: 0, available: 0, seen: 0 }
    }

    /// The device's end.
    pub fn queue(&self) -> VirtQueue {
        let fds = (self.kick.try_clone().unwrap(), self.call.try_clone().unwrap());
        let rings = (self.size, self.addresses);
        VirtQueue::new(self.index, rings, queue::FEATURES, self.memory.clone(), fds).unwrap()
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, addr: u64) {
        self.memory.write_obj(value, GuestAddress(addr)).unwrap();
    }

    fn read<T: vm_memory::ByteValued>(&self, addr: u64) -> T {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    /// Begins anew, as after a reset of the queue: with empty rings.
    pub fn reset(&mut self) {
        (self.free, self.available, self.seen) = (0, 0, 0);
        let QueueAddresses { available, used, .. } = self.addresses;
        let size = usize::from(self.size);
        self.put(available, &vec![0; 6 + 2 * size]);
        self.put(used, &vec![0; 6 + 8 * size]);
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.addresses.descriptors + 16 * u64::from(index);
        self.write(addr, at);
        self.write(len, at + 8);
        self.write(flags, at + 12);
        self.write(next, at + 14);
    }

    /// Makes the chain that begins with this descriptor available.
    pub fn offer(&mut self, head: u16) {
        let at = self.addresses.available + 4 + 2 * u64::from(self.available % self.size);
        self.write(head, at);
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    /// Sets the available ring's index.
    pub fn set_available(&self, index: u16) {
        self.write(index, self.addresses.available + 2);
    }

    /// Makes a chain of buffers available, those to read first; answers its head.
    pub fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let head = self.free;
        let count = readable.len() + writable.len();
        for (index, (addr, len)) in readable.iter().chain(writable).enumerate() {
            let mut flags = if index < readable.len() { 0 } else { WRITE };
            if index + 1 < count {
                flags |= NEXT;
            }
            let next = (self.free + 1) % self.size;
            self.describe(self.free, *addr, *len, flags, next);
            self.free = next;
        }
        self.offer(head);
        head
    }

    /// Notifies the device of the chain that was made available last, if it asks for that.
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        let event: u16 = self.read(self.addresses.used + 4 + 8 * u64::from(self.size));
        if event == self.available.wrapping_sub(1) {
            self.kick.write(1).unwrap();
        }
    }

    /// Waits for the interrupt, if there is nothing that has come back, and answers what has.
    pub fn wait(&mut self) -> Vec<(u16, u32)> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            // For a while without the interrupt, and at last after the device could see that it is wanted.
            for _ in 0..2000 {
                let used = self.used();
                if !used.is_empty() {
                    return used;
                }
                fence(Ordering::SeqCst);
            }
            let fd = self.call.as_raw_fd();
            let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: `poll` is one entry.
            unsafe { libc::poll(&raw mut poll, 1, 1000) };
            assert!(Instant::now() < deadline, "nothing comes back");
            self.was_called();
        }
    }

    /// The chains that have come back, with what was written to each.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let index: u16 = self.read(self.addresses.used + 2);
        let mut used = Vec::new();
        while self.seen != index {
            let at = self.addresses.used + 4 + 8 * u64::from(self.seen % self.size);
            let (head, len): (u32, u32) = (self.read(at), self.read(at + 4));
            used.push((u16::try_from(head).unwrap(), len));
            self.seen = self.seen.wrapping_add(1);
        }
        // `used_event`: to be told of the next.
        self.write(self.seen, self.addresses.available + 4 + 2 * u64::from(self.size));
        used
    }

    /// Whether the device asks to be notified of the next available chain (`avail_event`).
    pub fn is_to_notify(&self) -> bool {
        let event: u16 = self.read(self.addresses.used + 4 + 8 * u64::from(self.size));
        event == self.available
    }

    /// Whether the device has signalled its interrupt since this was asked last.
    pub fn was_called(&self) -> bool {
        self.call.read().is_ok()
    }

    /// The bytes at an address.
    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// Puts bytes at an address.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }
}
