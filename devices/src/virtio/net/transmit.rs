//! What a guest sends.

use std::sync::Arc;

use vm_memory::{GuestMemoryMmap, Permissions};

use super::super::device::DeviceEvents;
use super::super::queue::{Chain, QueueError, VirtQueue};
use super::super::thread::QueueHandler;
use super::iovecs::{self, IoVecs};
use super::port::Port;

/// How many packets are sent before the thread looks whether it is to stop.
const BATCH: usize = 256;

/// Writes each packet of a queue to a tap: the header that the driver made is the tap's
/// (`struct virtio_net_hdr_mrg_rxbuf`, virtio 1.2, 5.1.6).
#[derive(Debug)]
pub(super) struct Transmitter {
    port: Arc<Port>,
    events: Arc<DeviceEvents>,
    chain: Chain,
    packet: IoVecs,
}

impl Transmitter {
    /// Sends to `port` what is in `memory`.
    pub(super) fn new(port: Arc<Port>, events: Arc<DeviceEvents>, memory: GuestMemoryMmap) -> Self {
        Self { port, events, chain: Chain::default(), packet: IoVecs::new(memory) }
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

impl QueueHandler for Transmitter {
    fn handle(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        for _ in 0..BATCH {
            if !queue.pop(&mut self.chain)? {
                return queue.notify();
            }
            self.send();
            queue.push(self.chain.head(), 0)?;
        }
        // There may be more, of which no notification tells.
        let _ = queue.kick().write(1);
        queue.notify()
    }
}
