//! Split virtqueues (virtio 1.2, 2.7), on the crate virtio-queue.
//!
//! A driver may hand over anything: what isn't a chain of buffers within guest RAM is an error here,
//! after which the device needs a reset. The crate ends a chain early instead.

mod available;
mod table;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use vmm_sys_util::eventfd::EventFd;

use self::table::{Entries, Entry};
use super::events;
use super::ram::Ram;

/// The feature bits of rings that [`VirtQueue`] implements.
pub const FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// How many chains for each entry of a queue are taken before its thread has to look whether it is to stop.
const ROUNDS: u32 = 4;

/// What a driver has made of a queue that no device can work with.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings aren't where, or what, they have to be.
    #[error("queue {queue} has no valid rings: {source}")]
    Ring {
        /// The queue's number.
        queue: u16,
        /// What virtio-queue says.
        source: virtio_queue::Error,
    },
    /// A chain leads out of its table, in a circle, or is malformed otherwise.
    #[error("queue {queue}: the descriptor chain at {head} is {why}")]
    Chain {
        /// The queue's number.
        queue: u16,
        /// The index of its first descriptor.
        head: u16,
        /// What is wrong.
        why: &'static str,
    },
    /// The device was asked for something that it can't do for a reason other than the ring.
    #[error("queue {queue}: {source}")]
    Io {
        /// The queue's number.
        queue: u16,
        /// What the host says.
        source: io::Error,
    },
}

/// Where the driver has put a queue's parts (GPA).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring (the driver area).
    pub available: u64,
    /// The used ring (the device area).
    pub used: u64,
}

/// A buffer of a chain, within guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its first byte (GPA).
    pub addr: GuestAddress,
    /// Its size in bytes, not 0.
    pub len: u32,
}

/// A chain of buffers: those that the device reads, then those that it writes.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: usize,
    descriptors: Vec<Descriptor>,
}

impl Chain {
    /// The index of its first descriptor, by which it is [given back](VirtQueue::push).
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The buffers for the device to read.
    pub fn readable(&self) -> &[Descriptor] {
        self.descriptors.get(..self.readable).unwrap_or_default()
    }

    /// The buffers for the device to write.
    pub fn writable(&self) -> &[Descriptor] {
        self.descriptors.get(self.readable..).unwrap_or_default()
    }

    /// The bytes in these buffers.
    pub fn bytes(descriptors: &[Descriptor]) -> u64 {
        descriptors.iter().map(|descriptor| u64::from(descriptor.len)).sum()
    }
}

/// A queue with its notification and its interrupt.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    ram: Ram,
    kick: EventFd,
    call: EventFd,
    /// Chains taken since there was none last.
    taken: u32,
    /// Chains given back since the driver was told last.
    added: u16,
    /// Entries of the used ring on their way there.
    elements: Vec<u8>,
}

impl VirtQueue {
    /// Queue `index` of `size` entries at these addresses; `kick` is its notification, `call` its
    /// interrupt. `features` are what the driver has accepted.
    ///
    /// # Errors
    ///
    /// Size or addresses aren't those of a queue in guest RAM.
    pub fn new(
        index: u16,
        (size, addresses): (u16, QueueAddresses),
        features: u64,
        memory: GuestMemoryMmap,
        (kick, call): (EventFd, EventFd),
    ) -> Result<Self, QueueError> {
        let failed = |source| QueueError::Ring { queue: index, source };
        let mut queue = Queue::new(size).map_err(failed)?;
        let QueueAddresses { descriptors, available, used } = addresses;
        queue.try_set_desc_table_address(GuestAddress(descriptors)).map_err(failed)?;
        queue.try_set_avail_ring_address(GuestAddress(available)).map_err(failed)?;
        queue.try_set_used_ring_address(GuestAddress(used)).map_err(failed)?;
        queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        let ram = Ram::new(memory);
        // The sizes of virtio 1.2, 2.7; `Queue::is_valid` would log.
        let entries = usize::from(size);
        let parts = [
            (descriptors, 16 * entries, Permissions::Read),
            (available, 6 + 2 * entries, Permissions::Read),
            (used, 6 + 8 * entries, Permissions::Write),
        ];
        for (address, bytes, access) in parts {
            if address == 0 || !ram.check_range(GuestAddress(address), bytes, access) {
                return Err(failed(virtio_queue::Error::AddressOverflow));
            }
        }
        queue.set_ready(true);
        Ok(Self { index, queue, ram, kick, call, taken: 0, added: 0, elements: Vec::new() })
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The number of its entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Where its parts are.
    pub fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            descriptors: self.queue.desc_table(),
            available: self.queue.avail_ring(),
            used: self.queue.used_ring(),
        }
    }

    /// Guest RAM.
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.ram.memory()
    }

    /// Guest RAM, for accesses that are made for each request.
    pub(super) fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Its notification: readable after the driver has made buffers available. A blocking eventfd.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Its interrupt: a signal tells the driver of used buffers.
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Takes the next available chain into `chain`, whose memory is used again. `false` if there is
    /// none: the driver notifies when there is one.
    ///
    /// A driver may make chains available for ever. `false` is answered now and then although there may
    /// be one, and the notification is signalled: who takes chains until there is none ends in a bounded
    /// time, and comes back after its thread has looked whether it is to stop.
    ///
    /// # Errors
    ///
    /// The driver's rings are broken.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.taken >= ROUNDS.saturating_mul(self.size().into()) {
            self.taken = 0;
            events::signal(&self.kick);
            return Ok(false);
        }
        let is_taken = self.pop_or_enable(chain)?;
        self.taken = if is_taken { self.taken.saturating_add(1) } else { 0 };
        Ok(is_taken)
    }

    /// Takes the next available chain, or asks the driver to notify.
    fn pop_or_enable(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let mut has_asked = false;
        let head = loop {
            if let Some(head) = self.next_available()? {
                break head;
            }
            if has_asked {
                return Ok(false);
            }
            // More may have come before the driver could see that it has to notify.
            self.enable_notification()?;
            has_asked = true;
        };
        self.read_chain(head, chain)?;
        Ok(true)
    }

    /// Makes `chain` the one that begins with this descriptor.
    #[inline(always)]
    fn read_chain(&self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        chain.head = head;
        chain.readable = 0;
        chain.descriptors.clear();
        let broken = |why| self.broken(head, why);
        let table = (self.queue.desc_table(), self.queue.size());
        let mut entries = Entries::new(&self.ram, table, head);
        while entries.has_next() {
            let Entry { addr, len, is_writable } = entries.next().map_err(broken)?;
            if len == 0 {
                return Err(broken("of a length of 0"));
            }
            let access = if is_writable {
                Permissions::Write
            } else if chain.readable == chain.descriptors.len() {
                chain.readable += 1;
                Permissions::Read
            } else {
                return Err(broken("readable behind writable"));
            };
            let bytes = usize::try_from(len).unwrap_or(usize::MAX);
            if !self.ram.check_range(addr, bytes, access) {
                return Err(broken("outside guest RAM"));
            }
            chain.descriptors.push(Descriptor { addr, len });
        }
        Ok(())
    }

    /// Puts the chain [taken](Self::pop) last back: it is the next again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver with `written` bytes in its writable buffers, counted from
    /// the first. The driver isn't [told](Self::notify) yet.
    ///
    /// # Errors
    ///
    /// The driver's rings are broken.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        if head >= self.queue.size() {
            return Err(self.ring(virtio_queue::Error::InvalidDescriptorIndex));
        }
        self.added = self.added.saturating_add(1);
        // As `add_used` does it (virtio 1.2, 2.7.8), in a third of the time.
        let (next, ring) = (self.queue.next_used(), self.queue.used_ring());
        let slot = u64::from(next % self.queue.size());
        let element = ring.saturating_add(4).saturating_add(8 * slot);
        let after = next.wrapping_add(1);
        let is_done = self.ram.write_words(GuestAddress(element), [head.into(), written])
            && self.ram.store_index(GuestAddress(ring.saturating_add(2)), after);
        if is_done {
            self.queue.set_next_used(after);
            return Ok(());
        }
        self.queue.add_used(&self.ram, head, written).map_err(|e| self.ring(e))
    }

    /// Gives several chains back at once, so that the driver sees all of them or none: those of one
    /// packet (virtio 1.2, 5.1.6.4.1).
    ///
    /// # Errors
    ///
    /// The driver's rings are broken.
    pub fn push_all(&mut self, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some(((last, written), mut rest)) = used.split_last() else { return Ok(()) };
        // What is before the last, in one piece, or in two where the ring begins anew.
        while !rest.is_empty() {
            let next = self.queue.next_used();
            let slot = next % self.queue.size();
            let fits = usize::from(self.queue.size().saturating_sub(slot)).min(rest.len());
            let (part, behind) = rest.split_at(fits);
            // As `add_used` writes them, but for the ring's index, which is written with the last: an
            // index of 16 bits before entries of 8 bytes (virtio 1.2, 2.7.8).
            self.elements.clear();
            for (head, written) in part {
                self.elements.extend(u32::from(*head).to_le_bytes());
                self.elements.extend(written.to_le_bytes());
            }
            let addr = self.queue.used_ring().saturating_add(4).saturating_add(8 * u64::from(slot));
            self.ram
                .write_slice(&self.elements, GuestAddress(addr))
                .map_err(|e| self.ring(virtio_queue::Error::GuestMemory(e)))?;
            let count = u16::try_from(part.len()).unwrap_or(u16::MAX);
            self.queue.set_next_used(next.wrapping_add(count));
            self.added = self.added.saturating_add(count);
            rest = behind;
        }
        self.push(*last, *written)
    }

    /// Tells the driver of the chains given back, if it asked to be told.
    ///
    /// # Errors
    ///
    /// The driver's rings are broken.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        if self.added == 0 {
            return Ok(());
        }
        // What was given back is seen before what the driver asks for is read. The crate counts only
        // chains given back one by one, and doesn't read the flags.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        let wanted = if self.queue.event_idx_enabled() {
            // `used_event`, behind the ring (virtio 1.2, 2.7.6 and 2.7.7.2).
            let behind = ring.saturating_add(4).saturating_add(2 * u64::from(self.queue.size()));
            let event = self.load(behind)?;
            let passed = self.queue.next_used().wrapping_sub(event).wrapping_sub(1);
            passed < self.added
        } else {
            u32::from(self.load(ring)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        self.added = 0;
        if wanted {
            events::signal(&self.call);
        }
        Ok(())
    }

    /// The error of a chain that a kind of device can't work with.
    #[cold]
    pub fn broken(&self, head: u16, why: &'static str) -> QueueError {
        QueueError::Chain { queue: self.index, head, why }
    }

    fn ring(&self, source: virtio_queue::Error) -> QueueError {
        QueueError::Ring { queue: self.index, source }
    }
}

impl std::fmt::Debug for VirtQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtQueue")
            .field("index", &self.index)
            .field("size", &self.size())
            .field("kick", &self.kick.as_raw_fd())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
