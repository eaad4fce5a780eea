//! What a driver has made available, and when it is to notify (virtio 1.2, 2.7.6 and 2.7.10).
//!
//! As virtio-queue does it, whose accesses by way of vm-memory take ten times the instructions: half a
//! dozen of them are made for each chain.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::{QueueError, VirtQueue};

impl VirtQueue {
    /// Takes the head of the next available chain, if there is one.
    #[inline(always)]
    pub(super) fn next_available(&mut self) -> Result<Option<u16>, QueueError> {
        let (ring, next) = (self.queue.avail_ring(), self.queue.next_avail());
        let pending = self.load(ring.saturating_add(2))?.wrapping_sub(next);
        if pending == 0 {
            return Ok(None);
        }
        // What the driver wrote before the index is read after it.
        fence(Ordering::Acquire);
        if pending > self.queue.size() {
            return Err(self.ring(virtio_queue::Error::InvalidAvailRingIndex));
        }
        let slot = u64::from(next % self.queue.size());
        let head = self.load(ring.saturating_add(4).saturating_add(2 * slot))?;
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(head))
    }

    /// Asks the driver to notify of the next chain. It may have made some available before it could see
    /// that: who calls this looks again.
    pub(super) fn enable_notification(&mut self) -> Result<(), QueueError> {
        let ring = self.queue.used_ring();
        if self.queue.event_idx_enabled() {
            // `avail_event`, behind the ring.
            let entries = 8 * u64::from(self.queue.size());
            let behind = ring.saturating_add(4).saturating_add(entries);
            self.store(behind, self.queue.next_avail())?;
        } else {
            // `VIRTQ_USED_F_NO_NOTIFY` is clear.
            self.store(ring, 0)?;
        }
        // The driver's index is read after this can be seen (2.7.13.3.1 has the driver's half).
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Reads a field of a ring, by itself in no order.
    #[inline(always)]
    pub(super) fn load(&self, addr: u64) -> Result<u16, QueueError> {
        match self.ram.load_index(GuestAddress(addr)) {
            Some(value) => Ok(value),
            None => self.load_anywhere(addr),
        }
    }

    #[cold]
    fn load_anywhere(&self, addr: u64) -> Result<u16, QueueError> {
        let value: Result<u16, _> = self.ram.load(GuestAddress(addr), Ordering::Relaxed);
        value.map(u16::from_le).map_err(|e| self.ring(virtio_queue::Error::GuestMemory(e)))
    }

    /// Writes a field of a ring, after all that was written before.
    #[inline(always)]
    fn store(&self, addr: u64, value: u16) -> Result<(), QueueError> {
        if self.ram.store_index(GuestAddress(addr), value) {
            return Ok(());
        }
        let stored = self.ram.store(value.to_le(), GuestAddress(addr), Ordering::Release);
        stored.map_err(|e| self.ring(virtio_queue::Error::GuestMemory(e)))
    }
}
