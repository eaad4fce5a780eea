//! The entropy device (virtio 1.2, 5.4): the host's randomness for the guest.

use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Activation, Device, DeviceType};
use super::device_events::DeviceEvents;
use super::queue::{Chain, QueueError, VirtQueue};
use super::thread::{QueueHandler, QueueThreads};
use crate::ratelimit::LogLimit;
use crate::thread_kind::ThreadKind;

/// Entropy source (virtio 1.2, 5.4.1); no class of PCI is right (0x00, 0xff: none of the others).
const TYPE: DeviceType = DeviceType { id: 4, class: 0x00_ff00 };

/// The size of its queue: Linux' driver asks for one buffer at a time.
const QUEUE_SIZE: u16 = 8;

/// The most bytes that a request gets.
const MAX_BYTES: usize = 4096;

/// The device.
#[derive(Debug)]
pub struct Entropy {
    name: String,
    threads: QueueThreads,
    events: Option<Arc<DeviceEvents>>,
    log: Arc<LogLimit>,
}

impl Entropy {
    /// A device called `name`.
    pub fn new(name: &str) -> Self {
        let log = Arc::new(LogLimit::named(name));
        let threads = QueueThreads::new(ThreadKind::Entropy);
        Self { name: name.to_owned(), threads, events: None, log }
    }

    /// What works on its queue, without a thread.
    #[cfg(feature = "fuzzing")]
    pub fn handler() -> Box<dyn QueueHandler> {
        Box::new(EntropyQueue::default())
    }
}

impl Device for Entropy {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn prepare(&mut self, _: &[&EventFd]) -> io::Result<()> {
        self.threads.prepare(0, &self.name)
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.events = Some(activation.events);
        activation.queues.into_iter().try_for_each(|queue| self.activate_queue(queue))
    }

    fn threads(&mut self) -> Option<&mut QueueThreads> {
        Some(&mut self.threads)
    }

    fn has_queue_reset(&self) -> bool {
        true
    }

    fn activate_queue(&mut self, queue: VirtQueue) -> io::Result<()> {
        let events = self.events.clone().ok_or(io::ErrorKind::InvalidInput)?;
        let handler = EntropyQueue::default();
        self.threads.start(&self.name, queue, handler, events, self.log.clone())
    }
}

/// The half that works on the queue.
#[derive(Debug, Default)]
struct EntropyQueue {
    chain: Chain,
}

impl QueueHandler for EntropyQueue {
    fn handle(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while queue.pop(&mut self.chain)? {
            let written = fill(queue, &self.chain);
            queue.push(self.chain.head(), written)?;
            queue.notify()?;
        }
        Ok(())
    }
}

/// Fills the buffers of a request, and answers how many bytes of them.
fn fill(queue: &VirtQueue, chain: &Chain) -> u32 {
    let mut written = 0u32;
    let mut bytes = [0u8; MAX_BYTES];
    let mut rest = bytes.as_mut_slice();
    for buffer in chain.writable() {
        let len = usize::try_from(buffer.len).unwrap_or(usize::MAX).min(rest.len());
        let (part, behind) = rest.split_at_mut(len);
        // SAFETY: getrandom fills at most as many bytes as the slice has.
        let filled =
            unsafe { libc::syscall(libc::SYS_getrandom, part.as_mut_ptr(), part.len(), 0) };
        let Some(part) = usize::try_from(filled).ok().and_then(|filled| part.get(..filled)) else {
            break;
        };
        if queue.memory().write_slice(part, GuestAddress(buffer.addr.0)).is_err() {
            break;
        }
        written = written.saturating_add(u32::try_from(part.len()).unwrap_or_default());
        rest = behind;
    }
    written
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DriverQueue, RAM, ram, wait_signal};
    use super::*;

    #[test]
    fn buffers_are_filled_to_a_bound() {
        let memory = ram();
        let mut driver = DriverQueue::new(&memory, RAM, 8);
        let head = driver.add(&[(RAM + 0x1000, 64, true), (RAM + 0x2000, 0x10000, true)]);
        let (mut queue, _kick, call) = driver.device(0, 0);
        EntropyQueue::default().handle(&mut queue).unwrap();
        assert_eq!(driver.used(), Some((head.into(), 4096)));
        assert!(wait_signal(&call));
        let mut bytes = [0; 64];
        memory.read_slice(&mut bytes, GuestAddress(RAM + 0x1000)).unwrap();
        assert_ne!(bytes, [0; 64]);
    }

    #[test]
    fn a_request_without_room_is_given_back() {
        let memory = ram();
        let mut driver = DriverQueue::new(&memory, RAM, 8);
        let head = driver.add(&[(RAM + 0x1000, 64, false)]);
        let (mut queue, _kick, _call) = driver.device(0, 0);
        EntropyQueue::default().handle(&mut queue).unwrap();
        assert_eq!(driver.used(), Some((head.into(), 0)));
    }
}
