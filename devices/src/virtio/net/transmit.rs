//! What a guest sends.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{GuestMemoryMmap, Permissions};

use super::super::device_events::DeviceEvents;
use super::super::queue::{Chain, QueueError, VirtQueue};
use super::super::thread::{FileEvent, FileHandler, Wait};
use super::iovecs::{self, IoVecs};
use super::port::Port;

/// How many packets are sent before the thread looks whether it is to stop.
const BATCH: usize = 256;

/// How long a driver may not be told of packets that were sent, unless they are as many or as large
/// as one of the limits below. A network card does the same (`ethtool -C`, tx-usecs): what frees
/// buffers is mostly the driver itself, when it sends or receives the next packet, and Linux' asks to
/// be told of each.
const DELAY: Duration = Duration::from_micros(200);
/// The number of packets that a driver is told of at once.
const MANY: u32 = 64;
/// The size of packets that a driver is told of at once, in bytes.
const LARGE: u64 = 256 << 10;

/// Writes each packet of a queue to a tap: the header that the driver made is the tap's
/// (`struct virtio_net_hdr_mrg_rxbuf`, virtio 1.2, 5.1.6).
#[derive(Debug)]
pub(super) struct Transmitter {
    port: Arc<Port>,
    events: Arc<DeviceEvents>,
    chain: Chain,
    packet: IoVecs,
    /// Packets of which the driver hasn't been told that they were sent, and their size.
    owed: (u32, u64),
}

impl Transmitter {
    /// Sends to `port` what is in `memory`.
    pub(super) fn new(port: Arc<Port>, events: Arc<DeviceEvents>, memory: GuestMemoryMmap) -> Self {
        Self { port, events, chain: Chain::default(), packet: IoVecs::new(memory), owed: (0, 0) }
    }

    /// Sends the packet in `chain`.
    fn send(&mut self) {
        let buffers = self.chain.readable();
        self.packet.clear();
        // A packet in more pieces than a call takes is dropped.
        if buffers.len() <= iovecs::MAX && self.packet.add(buffers, Permissions::Read) {
            self.port.send(&self.packet, &self.events);
        }
    }
}

impl FileHandler for Transmitter {
    fn file(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }

    fn handle(&mut self, queue: &mut VirtQueue, event: FileEvent) -> Result<Wait, QueueError> {
        let mut wait = Wait::DriverFor(Duration::ZERO);
        for _ in 0..BATCH {
            if !queue.pop(&mut self.chain)? {
                wait = Wait::Driver;
                break;
            }
            self.send();
            queue.push(self.chain.head(), 0)?;
            let (packets, bytes) = self.owed;
            let size = Chain::bytes(self.chain.readable());
            self.owed = (packets.saturating_add(1), bytes.saturating_add(size));
        }
        let (packets, bytes) = self.owed;
        // A driver with a small queue needs its buffers sooner.
        let many = MANY.min(u32::from(queue.size()) / 4).max(1);
        if event == FileEvent::Timeout || packets >= many || bytes >= LARGE {
            self.owed = (0, 0);
            queue.notify()?;
        } else if packets > 0 && wait == Wait::Driver {
            wait = Wait::DriverFor(DELAY);
        }
        // Without an end there may be more, of which no notification tells.
        Ok(wait)
    }
}
