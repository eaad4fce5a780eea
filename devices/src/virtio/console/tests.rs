//! A console with a driver whose queues are in RAM of the test's.

use std::sync::Mutex;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::testing::{DriverQueue, RAM, RAM_SIZE, ram, wait_signal};
use super::*;

const BUFFERS: u64 = RAM + 0x1_0000;

/// Output that has room for so many bytes until it is waited for.
#[derive(Clone)]
struct Host {
    got: Arc<Mutex<Vec<u8>>>,
    waited: Arc<AtomicU32>,
    room: usize,
}

impl Output for Host {
    fn put(&mut self, bytes: &[u8]) -> io::Result<Room> {
        let mut got = self.got.lock().unwrap();
        got.extend(bytes);
        Ok(if got.len() < self.room { Room::Left } else { Room::Full })
    }

    fn wait_for_room(&mut self, _: &dyn Fn() -> bool) {
        self.waited.fetch_add(1, Ordering::SeqCst);
        self.room *= 2;
    }
}

struct Fixture {
    memory: GuestMemoryMmap,
    console: Console,
    host: Host,
    drained: EventFd,
    changed: EventFd,
    receive: DriverQueue,
    transmit: DriverQueue,
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

impl Fixture {
    fn new() -> Self {
        let memory = ram();
        let host = Host { got: Arc::default(), waited: Arc::default(), room: 10_000 };
        let (console, drained) = (Console::new("console"), eventfd());
        console.port().connect(Box::new(host.clone()), drained.try_clone().unwrap());
        let receive = DriverQueue::new(&memory, RAM, 16);
        let transmit = DriverQueue::new(&memory, RAM + 0x1000, 64);
        Self { memory, console, host, drained, changed: eventfd(), receive, transmit }
    }

    /// Has the console work on its queues; answers their notifications and the interrupt for input.
    fn activate(&mut self) -> (EventFd, EventFd, EventFd) {
        let (receive, receive_kick, input) = self.receive.device(RECEIVE_QUEUE, 0);
        let (transmit, transmit_kick, _) = self.transmit.device(TRANSMIT_QUEUE, 0);
        let activation = Activation {
            features: F_SIZE,
            queues: vec![receive, transmit],
            memory: self.memory.clone(),
            events: Arc::new(DeviceEvents::new(self.changed.try_clone().unwrap())),
        };
        self.console.activate(activation).unwrap();
        (receive_kick, transmit_kick, input)
    }

    fn read(&self, address: u64, count: u32) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(count).unwrap()];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

#[test]
fn output_of_any_length_arrives_in_order() {
    let mut fixture = Fixture::new();
    let (_, kick, _) = fixture.activate();
    let all: Vec<u8> = (0..30_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    fixture.memory.write_slice(&all, GuestAddress(BUFFERS)).unwrap();
    let chains: [&[u32]; 3] = [&[1], &[4096, 1, 5000], &[10_000, 10_902]];
    let mut at = BUFFERS;
    for chain in chains {
        let mut buffers = Vec::new();
        for len in chain {
            buffers.push((at, *len, false));
            at += u64::from(*len);
        }
        let head = fixture.transmit.add(&buffers);
        kick.write(1).unwrap();
        assert_eq!(fixture.transmit.wait_used(), (head.into(), 0));
    }
    assert!(*fixture.host.got.lock().unwrap() == all);
    assert!(fixture.host.waited.load(Ordering::SeqCst) >= 2);
}

#[test]
fn input_waits_for_buffers_and_buffers_for_input() {
    let mut fixture = Fixture::new();
    let port = fixture.console.port().clone();
    // Before there is a driver.
    assert_eq!(port.enqueue(b"early"), 5);
    let (kick, _, input) = fixture.activate();
    let first = fixture.receive.add(&[(BUFFERS, 3, true), (BUFFERS + 0x100, 100, true)]);
    kick.write(1).unwrap();
    assert_eq!(fixture.receive.wait_used(), (first.into(), 5));
    assert!(wait_signal(&input));
    assert_eq!(fixture.read(BUFFERS, 3), b"ear");
    assert_eq!(fixture.read(BUFFERS + 0x100, 2), b"ly");
    // A buffer that waits.
    let second = fixture.receive.add(&[(BUFFERS, 64, true)]);
    kick.write(1).unwrap();
    assert_eq!(port.enqueue(b"late"), 4);
    assert_eq!(fixture.receive.wait_used(), (second.into(), 4));
    assert_eq!(fixture.read(BUFFERS, 4), b"late");
}

#[test]
fn input_beyond_the_queue_is_refused_until_drained() {
    let mut fixture = Fixture::new();
    let port = fixture.console.port().clone();
    let (kick, ..) = fixture.activate();
    assert_eq!(port.enqueue(&[b'x'; 5000]), INPUT_CAPACITY);
    assert_eq!(port.enqueue(b"y"), 0);
    assert!(fixture.drained.read().is_err());
    for expected in [4000, 96] {
        fixture.receive.add(&[(BUFFERS, 4000, true)]);
        kick.write(1).unwrap();
        assert_eq!(fixture.receive.wait_used().1, expected);
    }
    assert!(wait_signal(&fixture.drained));
    assert_eq!(port.enqueue(b"y"), 1);
}

#[test]
fn the_driver_is_told_of_another_size() {
    let mut fixture = Fixture::new();
    let port = fixture.console.port().clone();
    port.resize(80, 24);
    let config = |console: &mut Console, offset, count| {
        let mut data = vec![0xff; count];
        console.read_config(offset, &mut data);
        data
    };
    assert_eq!(config(&mut fixture.console, 0, 8), [80, 0, 24, 0, 0, 0, 0, 0]);
    let _events = fixture.activate();
    assert!(fixture.changed.read().is_err());
    port.resize(80, 24);
    assert!(fixture.changed.read().is_err());
    port.resize(300, 50);
    assert!(fixture.changed.read().is_ok());
    assert_eq!(config(&mut fixture.console, 0, 2), 300_u16.to_le_bytes());
    assert_eq!(config(&mut fixture.console, 2, 1), [50]);
    for offset in [4, 11, 12, 0x1000, u64::MAX] {
        assert_eq!(config(&mut fixture.console, offset, 4), [0; 4], "{offset:#x}");
    }
}

#[test]
fn what_makes_no_sense_is_given_back_and_a_broken_queue_fails_alone() {
    let mut fixture = Fixture::new();
    let port = fixture.console.port().clone();
    let (receive_kick, transmit_kick, _) = fixture.activate();
    // Buffers of the wrong direction.
    let head = fixture.transmit.add(&[(BUFFERS, 64, true)]);
    transmit_kick.write(1).unwrap();
    assert_eq!(fixture.transmit.wait_used(), (head.into(), 0));
    assert_eq!(port.enqueue(b"input"), 5);
    let head = fixture.receive.add(&[(BUFFERS, 64, false)]);
    receive_kick.write(1).unwrap();
    assert_eq!(fixture.receive.wait_used(), (head.into(), 0));
    // It has taken nothing of what was typed.
    fixture.receive.add(&[(BUFFERS, 64, true)]);
    receive_kick.write(1).unwrap();
    assert_eq!(fixture.receive.wait_used().1, 5);
    // Outside RAM.
    fixture.transmit.add(&[(RAM + RAM_SIZE as u64 - 8, 64, false)]);
    transmit_kick.write(1).unwrap();
    assert!(wait_signal(&fixture.changed), "the device needs a reset");
    assert_eq!(port.enqueue(b"more"), 4);
    fixture.receive.add(&[(BUFFERS, 64, true)]);
    receive_kick.write(1).unwrap();
    assert_eq!(fixture.receive.wait_used().1, 4);
    fixture.console.stop();
    while !fixture.console.is_stopped() {
        std::thread::yield_now();
    }
}

#[test]
fn a_driver_that_resets_it_loses_no_input_that_is_queued() {
    let mut fixture = Fixture::new();
    let port = fixture.console.port().clone();
    for round in 0_u8..20 {
        let (kick, ..) = fixture.activate();
        assert_eq!(port.enqueue(&[round]), 1);
        if round % 2 == 1 {
            fixture.receive.add(&[(BUFFERS, 64, true)]);
            kick.write(1).unwrap();
            assert_eq!(fixture.receive.wait_used().1, 2);
            assert_eq!(fixture.read(BUFFERS, 2), [round - 1, round]);
        }
        fixture.console.stop();
        while !fixture.console.is_stopped() {
            std::thread::yield_now();
        }
        fixture.receive = DriverQueue::new(&fixture.memory, RAM, 16);
        fixture.transmit = DriverQueue::new(&fixture.memory, RAM + 0x1000, 64);
        fixture.memory.write_slice(&[0; 0x2000], GuestAddress(RAM)).unwrap();
    }
}

#[test]
fn a_queue_is_reset_while_the_other_works() {
    let mut fixture = Fixture::new();
    let port = fixture.console.port().clone();
    let (mut receive_kick, mut transmit_kick, _) = fixture.activate();
    for round in 0_u8..10 {
        // The reset queue's buffers aren't touched any more; what is typed waits.
        fixture.receive.add(&[(BUFFERS, 64, true)]);
        receive_kick.write(1).unwrap();
        reset_queue(&mut fixture.console, RECEIVE_QUEUE);
        assert_eq!(port.enqueue(&[round]), 1);
        let head = fixture.transmit.add(&[(BUFFERS, 64, false)]);
        transmit_kick.write(1).unwrap();
        assert_eq!(fixture.transmit.wait_used(), (head.into(), 0));
        assert_eq!(fixture.receive.used(), None);
        fixture.memory.write_slice(&[0; 0x1000], GuestAddress(RAM)).unwrap();
        fixture.receive = DriverQueue::new(&fixture.memory, RAM, 16);
        let (queue, receive, _) = fixture.receive.device(RECEIVE_QUEUE, 0);
        fixture.console.activate_queue(queue).unwrap();
        fixture.receive.add(&[(BUFFERS, 64, true)]);
        receive.write(1).unwrap();
        assert_eq!(fixture.receive.wait_used().1, 1);
        assert_eq!(fixture.read(BUFFERS, 1), [round]);
        // The other one.
        reset_queue(&mut fixture.console, TRANSMIT_QUEUE);
        fixture.memory.write_slice(&[0; 0x1000], GuestAddress(RAM + 0x1000)).unwrap();
        fixture.transmit = DriverQueue::new(&fixture.memory, RAM + 0x1000, 64);
        let (queue, kick, _) = fixture.transmit.device(TRANSMIT_QUEUE, 0);
        fixture.console.activate_queue(queue).unwrap();
        transmit_kick = kick;
        receive_kick = receive;
        fixture.receive.reuse();
    }
    fixture.console.stop();
    while !fixture.console.is_stopped() {
        std::thread::yield_now();
    }
}

fn reset_queue(console: &mut Console, queue: u16) {
    assert!(console.has_queue_reset());
    console.stop_queue(queue);
    while !console.is_queue_stopped(queue) {
        std::thread::yield_now();
    }
}
