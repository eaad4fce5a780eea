//! The console (virtio 1.2, 5.3): one port, with the size of its terminal.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Activation, Device, DeviceType};
use super::device_events::DeviceEvents;
use super::queue::{Chain, Descriptor, QueueError, VirtQueue};
use super::thread::{QueueHandler, QueueThreads};
use crate::console::{Input, Output, Room};
use crate::ratelimit::LogLimit;
use crate::sync;
use crate::thread_kind::ThreadKind;

/// Console (virtio 1.2, 5.3.1); a communication controller of another kind (PCI Code and ID Assignment
/// Specification, 1.8).
const TYPE: DeviceType = DeviceType { id: 3, class: 0x07_8000 };

/// The configuration has columns and rows (virtio 1.2, 5.3.3).
const F_SIZE: u64 = 1 << 0;

/// The queues of port 0 (virtio 1.2, 5.3.2).
const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;

/// The names of their threads.
const RECEIVER: &str = "console-rx";
const TRANSMITTER: &str = "console-tx";

/// The sizes of the queues. Linux' driver fills the first with a page for each entry.
const QUEUE_SIZES: [u16; 2] = [16, 64];

/// The largest number of bytes of queued input.
const INPUT_CAPACITY: usize = 4096;

/// How much is moved at once, in bytes.
const PART: usize = 4096;

/// The device.
pub struct Console {
    port: Arc<ConsolePort>,
    threads: QueueThreads,
    /// Ends the transmitter's wait for the host.
    stop: Arc<AtomicBool>,
    log: Arc<LogLimit>,
}

/// What the device and the host's end of the console share.
#[derive(Default)]
pub struct ConsolePort {
    /// Columns in the low half, rows in the high one.
    size: AtomicU32,
    input: Mutex<InputQueue>,
    output: Mutex<Option<Box<dyn Output>>>,
    /// What the driver is told of changes by, while the device works.
    events: Mutex<Option<Arc<DeviceEvents>>>,
}

/// Input that the driver has had no buffers for yet.
#[derive(Default)]
struct InputQueue {
    bytes: VecDeque<u8>,
    /// Wakes the receiver, while there is one.
    kick: Option<EventFd>,
    /// Signalled when there is room for input again.
    drained: Option<EventFd>,
    /// Input was refused since `drained` was signalled last.
    refused: bool,
}

impl Console {
    /// A device whose messages begin with `name`, on a port that isn't connected yet.
    pub fn new(name: &str) -> Self {
        let log = Arc::new(LogLimit::named(name));
        let (port, stop) = Default::default();
        let threads = QueueThreads::new(ThreadKind::Console);
        Self { port, threads, stop, log }
    }

    /// Its port.
    pub fn port(&self) -> &Arc<ConsolePort> {
        &self.port
    }

    /// What works on a queue, without a thread.
    #[cfg(feature = "fuzzing")]
    pub fn handler(&self, queue: u16) -> Box<dyn QueueHandler> {
        let (port, chain) = (self.port.clone(), Chain::default());
        if queue == RECEIVE_QUEUE {
            return Box::new(Receiver { port, chain });
        }
        let (stop, log) = (Arc::default(), self.log.clone());
        Box::new(Transmitter { port, chain, stop, failed: false, log })
    }
}

impl Device for Console {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }

    /// `struct virtio_console_config` (virtio 1.2, 5.3.4); what is behind the size belongs to features
    /// that aren't offered.
    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let size = self.port.size.load(Ordering::Acquire).to_le_bytes();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = size.get(offset..).unwrap_or_default();
        let bytes = there.iter().copied().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    fn prepare(&mut self, _: &[&EventFd]) -> io::Result<()> {
        self.threads.prepare(RECEIVE_QUEUE, RECEIVER)?;
        self.threads.prepare(TRANSMIT_QUEUE, TRANSMITTER)
    }

    fn activate(&mut self, Activation { queues, events, .. }: Activation) -> io::Result<()> {
        *sync::lock(&self.port.events) = Some(events);
        queues.into_iter().try_for_each(|queue| self.activate_queue(queue))
    }

    fn threads(&mut self) -> Option<&mut QueueThreads> {
        Some(&mut self.threads)
    }

    fn stop(&mut self) {
        *sync::lock(&self.port.events) = None;
        [RECEIVE_QUEUE, TRANSMIT_QUEUE].into_iter().for_each(|queue| self.stop_queue(queue));
    }

    fn has_queue_reset(&self) -> bool {
        true
    }

    fn stop_queue(&mut self, queue: u16) {
        match queue {
            RECEIVE_QUEUE => sync::lock(&self.port.input).kick = None,
            _ => self.stop.store(true, Ordering::Release),
        }
        self.threads.stop_queue(queue);
    }

    fn activate_queue(&mut self, queue: VirtQueue) -> io::Result<()> {
        let (port, log, chain) = (self.port.clone(), self.log.clone(), Chain::default());
        let events = sync::lock(&port.events).clone().ok_or(io::ErrorKind::InvalidInput)?;
        if queue.index() == RECEIVE_QUEUE {
            sync::lock(&port.input).kick = Some(queue.kick().try_clone()?);
            self.threads.start(RECEIVER, queue, Receiver { port, chain }, events, log)
        } else {
            self.stop = Arc::default();
            let (stop, failed) = (self.stop.clone(), false);
            let transmitter = Transmitter { port, chain, stop, failed, log: log.clone() };
            self.threads.start(TRANSMITTER, queue, transmitter, events, log)
        }
    }
}

impl ConsolePort {
    /// Has output go to `output` from now on, what came before is lost; and signals `drained` when there
    /// is room for input again after [`enqueue`](Input::enqueue) refused some.
    pub fn connect(&self, output: Box<dyn Output>, drained: EventFd) {
        *sync::lock(&self.output) = Some(output);
        sync::lock(&self.input).drained = Some(drained);
    }
}

impl Input for ConsolePort {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut input = sync::lock(&self.input);
        let taken = bytes.len().min(INPUT_CAPACITY.saturating_sub(input.bytes.len()));
        input.bytes.extend(bytes.iter().take(taken));
        input.refused = taken < bytes.len();
        if let Some(kick) = input.kick.as_ref().filter(|_| taken != 0) {
            // Fails only while as many signals are pending as the counter holds.
            let _ = kick.write(1);
        }
        taken
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = u32::from(columns) | u32::from(rows) << 16;
        if self.size.swap(size, Ordering::AcqRel) != size
            && let Some(events) = &*sync::lock(&self.events)
        {
            events.config_changed();
        }
    }
}

/// The half that gives the driver input.
struct Receiver {
    port: Arc<ConsolePort>,
    chain: Chain,
}

impl QueueHandler for Receiver {
    fn handle(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while self.port.has_input() && queue.pop(&mut self.chain)? {
            let mut part = [0; PART];
            let room = Chain::bytes(self.chain.writable());
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(PART);
            let part = self.port.take_input(part.get_mut(..room).unwrap_or_default());
            let written = write(queue, self.chain.writable(), part);
            queue.push(self.chain.head(), written)?;
            queue.notify()?;
        }
        Ok(())
    }
}

impl ConsolePort {
    fn has_input(&self) -> bool {
        !sync::lock(&self.input).bytes.is_empty()
    }

    /// Moves input into `part`, as much as there is room for; answers what it is.
    fn take_input<'a>(&self, part: &'a mut [u8]) -> &'a [u8] {
        let mut input = sync::lock(&self.input);
        let count = input.bytes.len().min(part.len());
        for (to, from) in part.iter_mut().zip(input.bytes.drain(..count)) {
            *to = from;
        }
        if input.bytes.is_empty() && std::mem::take(&mut input.refused) {
            // As above.
            let _ = input.drained.as_ref().map(|drained| drained.write(1));
        }
        part.get(..count).unwrap_or_default()
    }
}

/// Writes input into a chain's buffers; answers how much.
fn write(queue: &VirtQueue, buffers: &[Descriptor], mut bytes: &[u8]) -> u32 {
    let mut written = 0u32;
    for buffer in buffers {
        let size = usize::try_from(buffer.len).unwrap_or(usize::MAX).min(bytes.len());
        let (now, later) = bytes.split_at_checked(size).unwrap_or((bytes, &[]));
        if now.is_empty() || queue.memory().write_slice(now, buffer.addr).is_err() {
            break;
        }
        written = written.saturating_add(u32::try_from(now.len()).unwrap_or_default());
        bytes = later;
    }
    written
}

/// The half that takes the driver's output.
struct Transmitter {
    port: Arc<ConsolePort>,
    chain: Chain,
    stop: Arc<AtomicBool>,
    /// Output couldn't be written.
    failed: bool,
    log: Arc<LogLimit>,
}

impl QueueHandler for Transmitter {
    fn handle(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while !self.is_stopping() && queue.pop(&mut self.chain)? {
            for index in 0..self.chain.readable().len() {
                let buffer = self.chain.readable().get(index).copied();
                buffer.into_iter().for_each(|buffer| self.transmit(queue, buffer));
            }
            queue.push(self.chain.head(), 0)?;
            queue.notify()?;
        }
        Ok(())
    }
}

impl Transmitter {
    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Has the host take a buffer's bytes, which may be as many as the guest has RAM.
    fn transmit(&mut self, queue: &VirtQueue, buffer: Descriptor) {
        let mut part = [0; PART];
        let (mut address, mut left) = (buffer.addr.0, buffer.len);
        while left > 0 && !self.is_stopping() {
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(PART);
            let bytes = part.get_mut(..count).unwrap_or_default();
            if queue.memory().read_slice(bytes, GuestAddress(address)).is_err() {
                return;
            }
            self.put(bytes);
            address = address.saturating_add(count as u64);
            left = left.saturating_sub(u32::try_from(count).unwrap_or(left));
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let mut output = sync::lock(&self.port.output);
        let Some(output) = &mut *output else { return };
        match output.put(bytes) {
            Ok(Room::Left) => {}
            Ok(Room::Full) => output.wait_for_room(&|| self.stop.load(Ordering::Acquire)),
            // The guest runs on without its console.
            Err(e) if !self.failed => {
                self.failed = true;
                self.log.warn(format_args!("output can't be written, the rest is lost: {e}"));
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
