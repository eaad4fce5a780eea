use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryBackend;

use super::super::device_events::DeviceEvents;
use super::super::testing::{DriverQueue, INDIRECT, NEXT, RAM, RAM_SIZE, WRITE, ram};
use super::super::thread::{QueueHandler, QueueThreads};
use super::*;
use crate::ratelimit::LogLimit;
use crate::thread_kind::ThreadKind;

const BUFFER: u64 = RAM + 0x8000;

/// A driver's queue with one chain, written as descriptors, and what popping it answers.
fn pop(descriptors: &[(u64, u32, u16, u16)]) -> Result<(usize, usize), QueueError> {
    let memory = ram();
    let mut driver = DriverQueue::new(&memory, RAM, 8);
    for (index, (addr, len, flags, next)) in (0..).zip(descriptors) {
        driver.write_descriptor(index, *addr, *len, *flags, *next);
    }
    driver.make_available(0);
    let (mut queue, ..) = driver.device(0, 0);
    let mut chain = Chain::default();
    assert!(queue.pop(&mut chain)?);
    Ok((chain.readable().len(), chain.writable().len()))
}

#[test]
fn a_chain_is_its_readable_and_its_writable_buffers() {
    assert_eq!(pop(&[(BUFFER, 16, 0, 0)]).unwrap(), (1, 0));
    assert_eq!(pop(&[(BUFFER, 16, WRITE, 0)]).unwrap(), (0, 1));
    let chain = [(BUFFER, 16, NEXT, 1), (BUFFER, 8, NEXT, 2), (BUFFER, 512, WRITE, 0)];
    assert_eq!(pop(&chain).unwrap(), (2, 1));
    let end = RAM + RAM_SIZE as u64;
    assert_eq!(pop(&[(end - 16, 16, 0, 0)]).unwrap(), (1, 0));
}

#[test]
fn broken_chains_are_errors() {
    let end = RAM + RAM_SIZE as u64;
    let cases: [&[(u64, u32, u16, u16)]; 11] = [
        // Endless.
        &[(BUFFER, 16, NEXT, 0)],
        &[(BUFFER, 16, NEXT, 1), (BUFFER, 16, NEXT, 0)],
        // Out of the table.
        &[(BUFFER, 16, NEXT, 8)],
        &[(BUFFER, 16, NEXT, 0xffff)],
        // Outside RAM.
        &[(0, 16, 0, 0)],
        &[(end - 8, 16, 0, 0)],
        &[(u64::MAX, 16, WRITE, 0)],
        &[(BUFFER, u32::MAX, WRITE, 0)],
        // Of no length, and readable behind writable.
        &[(BUFFER, 0, 0, 0)],
        &[(BUFFER, 16, WRITE | NEXT, 1), (BUFFER, 16, 0, 0)],
        // An indirect table that isn't whole descriptors.
        &[(BUFFER, 17, INDIRECT, 0)],
    ];
    for descriptors in cases {
        assert!(matches!(pop(descriptors), Err(QueueError::Chain { .. })), "{descriptors:x?}");
    }
}

#[test]
fn an_available_index_that_jumps_is_an_error() {
    let memory = ram();
    let driver = DriverQueue::new(&memory, RAM, 8);
    let (mut queue, ..) = driver.device(0, 0);
    assert!(!queue.pop(&mut Chain::default()).unwrap());
    driver.set_available_index(9);
    assert!(matches!(queue.pop(&mut Chain::default()), Err(QueueError::Ring { .. })));
}

#[test]
fn a_head_outside_the_table_is_an_error() {
    let memory = ram();
    let mut driver = DriverQueue::new(&memory, RAM, 8);
    driver.make_available(8);
    let (mut queue, ..) = driver.device(0, 0);
    assert!(matches!(queue.pop(&mut Chain::default()), Err(QueueError::Chain { head: 8, .. })));
    assert!(matches!(queue.push(8, 0), Err(QueueError::Ring { .. })));
}

#[test]
fn rings_are_within_guest_ram() {
    let memory = ram();
    let good = DriverQueue::new(&memory, RAM, 8).addresses;
    let end = RAM + RAM_SIZE as u64;
    for (size, addresses) in [
        (0, good),
        (3, good),
        (8, QueueAddresses { descriptors: 0, ..good }),
        (8, QueueAddresses { descriptors: RAM + 8, ..good }),
        (8, QueueAddresses { descriptors: end - 64, ..good }),
        (8, QueueAddresses { available: end - 2, ..good }),
        (8, QueueAddresses { used: end - 4, ..good }),
        (8, QueueAddresses { used: !3, ..good }),
    ] {
        let events = || EventFd::new(0).unwrap();
        let queue = VirtQueue::new(0, (size, addresses), 0, memory.clone(), (events(), events()));
        assert!(matches!(queue, Err(QueueError::Ring { .. })), "{size} {addresses:x?}");
    }
}

#[test]
fn random_descriptors_never_panic_and_stay_within_ram() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..2000 {
        let memory = ram();
        let mut driver = DriverQueue::new(&memory, RAM, 8);
        for index in 0..8 {
            let addr = match random() & 7 {
                0 => random(),
                _ => RAM + random() % (2 * RAM_SIZE as u64),
            };
            let [a, b, c, d, flags, next, choice, _] = random().to_le_bytes();
            let len = if choice & 7 == 0 { [a, b, c, d] } else { [a, b, 0, 0] };
            let len = u32::from_le_bytes(len);
            driver.write_descriptor(index, addr, len, (flags & 7).into(), (next & 15).into());
        }
        let [heads, jump, low, high, ..] = random().to_le_bytes();
        for _ in 0..heads & 7 {
            let [head, ..] = random().to_le_bytes();
            driver.make_available((head & 15).into());
        }
        if jump & 15 == 0 {
            driver.set_available_index(u16::from_le_bytes([low, high]));
        }
        let (mut queue, ..) = driver.device(0, FEATURES);
        let mut chain = Chain::default();
        for _ in 0..16 {
            let Ok(true) = queue.pop(&mut chain) else { break };
            for buffer in chain.readable().iter().chain(chain.writable()) {
                let bytes = usize::try_from(buffer.len).unwrap();
                memory.get_slice(buffer.addr, bytes).unwrap();
            }
            queue.push(chain.head(), 1).unwrap();
        }
    }
}

/// Gives each chain back, and makes it available again at once, as a hostile driver on another CPU may.
struct Refilled {
    driver: DriverQueue,
    chain: Chain,
    count: Arc<AtomicUsize>,
}

impl QueueHandler for Refilled {
    fn handle(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while queue.pop(&mut self.chain)? {
            queue.push(self.chain.head(), 0)?;
            self.driver.make_available(self.chain.head());
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn a_thread_whose_driver_never_ends_to_add_chains_is_stopped() {
    let memory = ram();
    let mut driver = DriverQueue::new(&memory, RAM, 8);
    driver.add(&[(BUFFER, 16, false)]);
    let (queue, ..) = driver.device(0, FEATURES);
    let (count, log) = (Arc::<AtomicUsize>::default(), Arc::new(LogLimit::new("test")));
    let handler = Refilled { driver, chain: Chain::default(), count: count.clone() };
    let events = Arc::new(DeviceEvents::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
    let mut threads = QueueThreads::new(ThreadKind::Entropy);
    threads.start("endless", queue, handler, events, log).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let wait = |is_over: &mut dyn FnMut() -> bool| {
        while !is_over() {
            assert!(Instant::now() < until, "waited in vain");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    // It comes back to work although nothing notifies.
    wait(&mut || count.load(Ordering::Relaxed) > 1000);
    threads.stop();
    wait(&mut || threads.is_stopped());
}
