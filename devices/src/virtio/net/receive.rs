//! What a guest receives.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{GuestMemoryMmap, Permissions};

use super::super::device_events::DeviceEvents;
use super::super::queue::{Chain, QueueError, VirtQueue};
use super::super::thread::{FileEvent, FileHandler, Wait};
use super::HEADER_SIZE;
use super::iovecs::{self, IoVecs};
use super::port::{Port, Received};

/// The offset of `num_buffers` in a packet's header (virtio 1.2, 5.1.6).
const NUM_BUFFERS: usize = 10;

/// How many packets are received before the thread looks whether it is to stop.
const BATCH: usize = 64;

/// How long a driver whose buffers may be too few for the next packet is waited for. Linux' gives more
/// long before; of one that never has more, packets that don't fit are dropped.
const PATIENCE: Duration = Duration::from_millis(20);

/// Reads packets from a tap into the buffers of a queue.
///
/// A read takes a packet whole or cuts it off, so it is given room for the largest: with merged
/// buffers (`VIRTIO_NET_F_MRG_RXBUF`) as many as that takes, of which those that a packet leaves are
/// for the next.
#[derive(Debug)]
pub(super) struct Receiver {
    port: Arc<Port>,
    events: Arc<DeviceEvents>,
    /// Whether a packet may be in several chains.
    merged: bool,
    /// The size of the largest packet with its header, in bytes.
    largest: u64,
    chain: Chain,
    /// The chains taken from the queue.
    taken: VecDeque<Taken>,
    /// Their buffers.
    buffers: IoVecs,
    /// The size of their buffers, in bytes.
    room: u64,
    /// The size that is enough where the driver gives no more; less than the largest packet's if the
    /// driver was waited for in vain, so that it isn't again for each packet.
    enough: u64,
    /// Chains with what was written to them.
    used: Vec<(u16, u32)>,
}

/// A chain taken from the queue.
#[derive(Clone, Copy, Debug)]
struct Taken {
    head: u16,
    pieces: usize,
    bytes: u32,
}

impl Receiver {
    /// Receives from `port` packets of at most `largest` bytes with their headers.
    pub(super) fn new(
        port: Arc<Port>,
        events: Arc<DeviceEvents>,
        memory: GuestMemoryMmap,
        (merged, largest): (bool, u64),
    ) -> Self {
        let (taken, used, room) = Default::default();
        let (chain, buffers) = (Chain::default(), IoVecs::new(memory));
        Self { port, events, merged, largest, chain, taken, buffers, room, enough: largest, used }
    }

    /// Takes chains until the largest packet fits; `false` if there are too few.
    fn fill(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        loop {
            let is_enough = if self.merged { self.room >= self.largest } else { self.room > 0 };
            if is_enough {
                self.enough = self.largest;
                return Ok(true);
            }
            if !queue.pop(&mut self.chain)? {
                return Ok(false);
            }
            let (head, writable) = (self.chain.head(), self.chain.writable());
            let index = queue.index();
            let broken = |why| QueueError::Chain { queue: index, head, why };
            let bytes = u32::try_from(Chain::bytes(writable)).unwrap_or(u32::MAX);
            if u64::from(bytes) < HEADER_SIZE {
                return Err(broken("shorter than a packet's header"));
            }
            let before = self.buffers.len();
            // One piece is left for what doesn't fit.
            if before.saturating_add(writable.len()) >= iovecs::MAX {
                if self.taken.is_empty() {
                    return Err(broken("of more than 1023 buffers"));
                }
                queue.undo_pop();
                return Ok(true);
            }
            if !self.buffers.add(writable, Permissions::Write) {
                return Err(broken("outside guest RAM"));
            }
            let pieces = self.buffers.len().saturating_sub(before);
            self.taken.push_back(Taken { head, pieces, bytes });
            self.room = self.room.saturating_add(bytes.into());
        }
    }

    /// Gives the driver the packet of this size in the first of the buffers.
    fn deliver(&mut self, size: usize, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let mut left = u32::try_from(size).unwrap_or(u32::MAX);
        if u64::from(left) > self.room || u64::from(left) < HEADER_SIZE {
            // Dropped: it didn't fit, or is none.
            return Ok(());
        }
        self.used.clear();
        let (mut pieces, mut room) = (0usize, 0u64);
        for chain in &self.taken {
            let written = left.min(chain.bytes);
            self.used.push((chain.head, written));
            pieces = pieces.saturating_add(chain.pieces);
            room = room.saturating_add(chain.bytes.into());
            left = left.saturating_sub(written);
            if left == 0 {
                break;
            }
        }
        let count = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        for (index, byte) in count.to_le_bytes().into_iter().enumerate() {
            self.buffers.set(NUM_BUFFERS.saturating_add(index), byte);
        }
        self.taken.drain(..self.used.len());
        self.buffers.remove_first(pieces);
        self.room = self.room.saturating_sub(room);
        queue.push_all(&self.used)
    }

    /// Receives what there is.
    fn receive(&mut self, queue: &mut VirtQueue, event: FileEvent) -> Result<Wait, QueueError> {
        if event == FileEvent::Timeout {
            // Packets take of it before the driver gives more: Linux' does when half of its queue is empty.
            self.enough = self.room / 2;
        }
        for _ in 0..BATCH {
            if self.port.is_gone() {
                return Ok(Wait::Driver);
            }
            if !self.fill(queue)? {
                if self.taken.is_empty() {
                    return Ok(Wait::Driver);
                }
                if self.room < self.enough {
                    return Ok(Wait::DriverFor(PATIENCE));
                }
            }
            match self.port.receive(&mut self.buffers, &self.events) {
                Received::Packet(size) => self.deliver(size, queue)?,
                Received::Dropped => {}
                Received::Nothing => return Ok(Wait::Readable),
                Received::Gone => return Ok(Wait::Driver),
            }
        }
        Ok(Wait::Readable)
    }
}

impl FileHandler for Receiver {
    fn file(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }

    fn handle(&mut self, queue: &mut VirtQueue, event: FileEvent) -> Result<Wait, QueueError> {
        let wait = self.receive(queue, event)?;
        queue.notify()?;
        Ok(wait)
    }
}
