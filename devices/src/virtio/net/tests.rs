//! Both directions with a driver in the guest's place and a pair of sockets in the tap's.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::super::device_events::DeviceEvents;
use super::super::queue::VirtQueue;
use super::super::thread::{FileEvent, FileHandler, Wait};
use super::testing::{self, FakeDriver, NEXT, WRITE};
use super::*;

mod wakeups;

/// Where the rings are (GPA).
const RINGS: u64 = 0x1000;

/// Where buffers are, beyond the rings (GPA).
const BUFFERS: u64 = 0x10_0000;

/// The largest packet in these tests, in bytes with its header.
const LARGEST: u64 = 4000;

/// A device's half and its peers: the network and a driver.
struct Bench {
    network: UnixDatagram,
    driver: FakeDriver,
    queue: VirtQueue,
    port: Arc<Port>,
    events: Arc<DeviceEvents>,
    memory: GuestMemoryMmap,
}

impl Bench {
    fn new(index: u16, size: u16) -> Self {
        let mut fds = [0; 2];
        // Sockets that keep the boundaries of packets and end with their peer.
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: two descriptors are written to an array of two.
        assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
        // SAFETY: made just now, and nobody else's.
        let [tap, network] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let log = Arc::new(LogLimit::new("test"));
        let port = Arc::new(Port::new(Arc::new(tap.into()), "tap".into(), log));
        let memory = testing::memory();
        let driver = FakeDriver::new(memory.clone(), index, size, RINGS);
        let queue = driver.queue();
        let events = Arc::new(DeviceEvents::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        Self { network: network.into(), driver, queue, port, events, memory }
    }

    fn receiver(&self, merged: bool) -> Receiver {
        let (port, events) = (self.port.clone(), self.events.clone());
        Receiver::new(port, events, self.memory.clone(), (merged, LARGEST))
    }

    fn transmitter(&self) -> Transmitter {
        Transmitter::new(self.port.clone(), self.events.clone(), self.memory.clone())
    }

    /// Sends the guest a packet of this size, with its header, in which every byte tells its place.
    fn send(&self, size: usize) -> Vec<u8> {
        let mut packet = pattern(size);
        // As a tap does it: the number of buffers isn't written.
        packet[10..12].fill(0xee);
        assert_eq!(self.network.send(&packet).unwrap(), size);
        packet
    }

    /// What the network got.
    fn received(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        let next = || self.network.recv(&mut buffer).ok().map(|size| buffer[..size].to_vec());
        std::iter::from_fn(next).collect()
    }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

fn with_count(mut packet: Vec<u8>, count: u8) -> Vec<u8> {
    packet[10..12].copy_from_slice(&[count, 0]);
    packet
}

#[test]
fn a_packet_is_sent_whole_however_it_is_cut() {
    let mut bench = Bench::new(1, 8);
    let mut transmitter = bench.transmitter();
    let packet = pattern(300);
    bench.driver.put(BUFFERS, &packet);
    let cuts: [&[(u64, u32)]; 3] = [
        &[(BUFFERS, 300)],
        &[(BUFFERS, 12), (BUFFERS + 12, 288)],
        &[(BUFFERS, 5), (BUFFERS + 5, 7), (BUFFERS + 12, 1), (BUFFERS + 13, 287)],
    ];
    for cut in cuts {
        let head = bench.driver.add(cut, &[]);
        let wait = transmitter.handle(&mut bench.queue, FileEvent::Driver).unwrap();
        assert_eq!(wait, Wait::DriverFor(Duration::from_micros(200)));
        assert_eq!(bench.received(), std::slice::from_ref(&packet));
        assert!(!bench.driver.was_called() && bench.driver.is_to_notify());
        let wait = transmitter.handle(&mut bench.queue, FileEvent::Timeout).unwrap();
        assert_eq!((wait, bench.driver.was_called()), (Wait::Driver, true));
        assert_eq!(bench.driver.used(), [(head, 0)]);
    }
}

#[test]
fn a_packet_that_the_tap_refuses_is_dropped_and_given_back() {
    let mut bench = Bench::new(1, 8);
    let mut transmitter = bench.transmitter();
    // Larger than a socket takes; nothing to read; then a good one.
    let heads = [
        bench.driver.add(&[(BUFFERS, 3 << 20)], &[]),
        bench.driver.add(&[], &[(BUFFERS, 100)]),
        bench.driver.add(&[(BUFFERS, 100)], &[]),
    ];
    transmitter.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert_eq!(bench.driver.used(), heads.map(|head| (head, 0)));
    assert_eq!(bench.received().last().unwrap().len(), 100);
    assert!(!bench.port.is_gone());
}

#[test]
fn a_driver_is_told_at_once_of_many_packets_and_of_large_ones() {
    let cases = [(256, 63, 20, false), (256, 64, 20, true), (8, 1, 20, false), (8, 2, 20, true)];
    for (size, count, bytes, called) in cases {
        let mut bench = Bench::new(1, size);
        let mut transmitter = bench.transmitter();
        for _ in 0..count {
            bench.driver.add(&[(BUFFERS, bytes)], &[]);
        }
        transmitter.handle(&mut bench.queue, FileEvent::Driver).unwrap();
        assert_eq!(bench.driver.was_called(), called, "{count} of {size}");
    }
    let mut bench = Bench::new(1, 256);
    let mut transmitter = bench.transmitter();
    bench.driver.add(&[(BUFFERS, 256 << 10)], &[]);
    transmitter.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert!(bench.driver.was_called());
}

#[test]
fn sending_without_end_is_interrupted() {
    let mut bench = Bench::new(1, 256);
    let mut transmitter = bench.transmitter();
    for _ in 0..256 {
        bench.driver.add(&[(BUFFERS, 20)], &[]);
    }
    // There may be more, so that the thread doesn't wait.
    let wait = transmitter.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert_eq!((wait, bench.driver.used().len()), (Wait::DriverFor(Duration::ZERO), 256));
    let wait = transmitter.handle(&mut bench.queue, FileEvent::Timeout).unwrap();
    assert_eq!(wait, Wait::Driver);
}

#[test]
fn a_packet_is_received_in_as_many_buffers_as_it_takes() {
    let mut bench = Bench::new(0, 16);
    let mut receiver = bench.receiver(true);
    let add = |bench: &mut Bench, n: u64| {
        let addr = BUFFERS + n * 0x1000;
        bench.driver.add(&[], &[(addr, 5), (addr + 5, 995)])
    };
    let heads: Vec<u16> = (0..5).map(|n| add(&mut bench, n)).collect();
    let first = bench.send(2500);
    let second = bench.send(60);
    assert_eq!(receiver.handle(&mut bench.queue, FileEvent::Driver).unwrap(), {
        // The second is left: four buffers are the largest packet's, two are there.
        Wait::DriverFor(Duration::from_millis(20))
    });
    let used = bench.driver.used();
    assert_eq!(used, [(heads[0], 1000), (heads[1], 1000), (heads[2], 500)]);
    let at = |n: u64| bench.driver.bytes(BUFFERS + n * 0x1000, 1000);
    let bytes = [at(0), at(1), at(2)].concat();
    assert_eq!(bytes[..2500], with_count(first, 3));
    assert!(bench.driver.was_called() && bench.driver.is_to_notify());
    // More buffers, and it goes on.
    let more = add(&mut bench, 5);
    add(&mut bench, 6);
    let wait = receiver.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert_eq!(wait, Wait::DriverFor(Duration::from_millis(20)));
    assert_eq!(bench.driver.used(), [(heads[3], 60)]);
    assert_eq!(bench.driver.bytes(BUFFERS + 0x3000, 60), with_count(second, 1));
    assert!(bench.driver.was_called());
    assert!(more > heads[4]);
}

#[test]
fn the_buffers_of_a_packet_become_visible_together() {
    let mut bench = Bench::new(0, 8);
    let mut queue = bench.driver.queue();
    for n in 0..3 {
        bench.driver.add(&[], &[(BUFFERS + n * 0x1000, 100)]);
    }
    queue.push_all(&[]).unwrap();
    assert_eq!(bench.driver.used(), []);
    queue.push_all(&[(2, 7), (0, 8), (1, 9)]).unwrap();
    queue.notify().unwrap();
    assert!(bench.driver.was_called(), "the driver asked for the first of them");
    assert_eq!(bench.driver.used(), [(2, 7), (0, 8), (1, 9)]);
    queue.notify().unwrap();
    assert!(!bench.driver.was_called());
    assert!(queue.push_all(&[(0, 1), (8, 1)]).is_err());
}

#[test]
fn without_merged_buffers_a_packet_is_in_one_and_what_does_not_fit_is_dropped() {
    let mut bench = Bench::new(0, 8);
    let mut receiver = bench.receiver(false);
    let head = bench.driver.add(&[], &[(BUFFERS, 12), (BUFFERS + 12, 1514)]);
    bench.send(1527);
    let packet = bench.send(1526);
    let wait = receiver.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert_eq!(wait, Wait::Driver, "without buffers it doesn't look at the tap");
    assert_eq!(bench.driver.used(), [(head, 1526)]);
    assert_eq!(bench.driver.bytes(BUFFERS, 1526), with_count(packet, 1));
}

#[test]
fn a_driver_with_few_buffers_is_waited_for_and_then_served() {
    let mut bench = Bench::new(0, 8);
    let mut receiver = bench.receiver(true);
    let head = bench.driver.add(&[], &[(BUFFERS, 500)]);
    bench.send(501);
    bench.send(500);
    let wait = receiver.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert!(matches!(wait, Wait::DriverFor(_)), "{wait:?}");
    assert_eq!(bench.driver.used(), []);
    let wait = receiver.handle(&mut bench.queue, FileEvent::Timeout).unwrap();
    assert_eq!((wait, bench.driver.used()), (Wait::Driver, vec![(head, 500)]));
    // From now on as many are enough.
    bench.send(80);
    let head = bench.driver.add(&[], &[(BUFFERS, 500)]);
    receiver.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert_eq!(bench.driver.used(), [(head, 80)]);
}

#[test]
fn a_driver_with_few_buffers_is_not_waited_for_with_each_packet() {
    let mut bench = Bench::new(0, 8);
    let mut receiver = bench.receiver(true);
    for n in 0..4 {
        bench.driver.add(&[], &[(BUFFERS + n * 0x1000, 900)]);
    }
    (0..3).for_each(|_| drop(bench.send(80)));
    let wait = receiver.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert!(matches!(wait, Wait::DriverFor(_)), "{wait:?}");
    receiver.handle(&mut bench.queue, FileEvent::Timeout).unwrap();
    assert_eq!(bench.driver.used().len(), 3);
}

#[test]
fn what_waits_without_buffers_waits_for_the_driver_alone() {
    let mut bench = Bench::new(0, 8);
    let mut receiver = bench.receiver(true);
    bench.send(100);
    for _ in 0..3 {
        let wait = receiver.handle(&mut bench.queue, FileEvent::Driver).unwrap();
        assert_eq!(wait, Wait::Driver);
        assert!(bench.driver.is_to_notify());
    }
}

#[test]
fn a_packet_without_a_header_is_dropped() {
    let mut bench = Bench::new(0, 8);
    let mut receiver = bench.receiver(true);
    bench.driver.add(&[], &[(BUFFERS, 4096)]);
    bench.network.send(&[1; 11]).unwrap();
    let wait = receiver.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert_eq!((wait, bench.driver.used()), (Wait::Readable, vec![]));
}

#[test]
fn chains_that_are_no_buffers_break_the_queue() {
    let add: [fn(&mut FakeDriver); 6] = [
        |driver| assert_eq!(driver.add(&[], &[(BUFFERS, 11)]), 0),
        |driver| assert_eq!(driver.add(&[(BUFFERS, 100)], &[]), 0),
        |driver| assert_eq!(driver.add(&[], &[(BUFFERS, 0)]), 0),
        |driver| assert_eq!(driver.add(&[], &[(testing::RAM_SIZE - 10, 100)]), 0),
        |driver| {
            driver.describe(0, BUFFERS, 100, NEXT | WRITE, 0);
            driver.offer(0);
        },
        |driver| driver.set_available(1000),
    ];
    for (index, add) in add.iter().enumerate() {
        let mut bench = Bench::new(0, 8);
        let mut receiver = bench.receiver(true);
        add(&mut bench.driver);
        bench.send(100);
        let result = receiver.handle(&mut bench.queue, FileEvent::Driver);
        assert!(result.is_err(), "{index}: {result:?}");
    }
}

#[test]
fn a_tap_that_is_deleted_takes_the_link_down_once() {
    let mut bench = Bench::new(0, 8);
    let mut receiver = bench.receiver(true);
    bench.driver.add(&[], &[(BUFFERS, 4096)]);
    let wait = receiver.handle(&mut bench.queue, FileEvent::Driver).unwrap();
    assert_eq!((wait, bench.port.is_gone()), (Wait::Readable, false));
    bench.network = UnixDatagram::unbound().unwrap();
    for _ in 0..3 {
        let wait = receiver.handle(&mut bench.queue, FileEvent::File).unwrap();
        assert_eq!(wait, Wait::Driver);
    }
    assert!(bench.port.is_gone());
    assert_eq!(bench.events.generation(), 1);
    // What the guest still sends is dropped.
    let mut driver = FakeDriver::new(bench.memory.clone(), 1, 8, 0x8000);
    let (mut queue, mut transmitter) = (driver.queue(), bench.transmitter());
    let head = driver.add(&[(BUFFERS, 100)], &[]);
    transmitter.handle(&mut queue, FileEvent::Driver).unwrap();
    assert_eq!(driver.used(), [(head, 0)]);
    assert_eq!(bench.events.generation(), 1);
}

#[test]
fn a_packet_that_can_t_be_read_is_one_packet_and_not_the_end_of_the_tap() {
    let mut bench = Bench::new(0, 8);
    let address = |last: u8| std::net::SocketAddr::from(([127, 91, 17, last], 0));
    let tap = UdpSocket::bind(address(1)).unwrap();
    let peer = UdpSocket::bind(address(2)).unwrap();
    tap.set_nonblocking(true).unwrap();
    let (here, there) = (tap.local_addr().unwrap(), peer.local_addr().unwrap());
    tap.connect(there).unwrap();
    // The next call fails once: nobody is there.
    drop(peer);
    tap.send(&[0]).unwrap();
    let peer = UdpSocket::bind(there).unwrap();
    peer.send_to(&pattern(100), here).unwrap();
    let (file, log) = (File::from(OwnedFd::from(tap)), Arc::new(LogLimit::new("test")));
    bench.port = Arc::new(Port::new(Arc::new(file), "tap".into(), log));
    let mut receiver = bench.receiver(true);
    let head = bench.driver.add(&[], &[(BUFFERS, 4096)]);
    receiver.handle(&mut bench.queue, FileEvent::File).unwrap();
    assert_eq!(bench.driver.used(), [(head, 100)]);
    assert!(!bench.port.is_gone());
    assert_eq!(bench.events.generation(), 0);
}

#[test]
fn threads_carry_packets_until_they_are_stopped() {
    let bench = Bench::new(0, 256);
    let Bench { network, mut driver, queue, events, memory, port } = bench;
    network.set_nonblocking(false).unwrap();
    let mut sender = FakeDriver::new(memory.clone(), 1, 8, 0x8000);
    for n in 0..64 {
        driver.add(&[], &[(BUFFERS + n * 0x1000, 0x1000)]);
    }
    let log = Arc::new(LogLimit::new("test"));
    let receiver = Receiver::new(port.clone(), events.clone(), memory.clone(), (true, LARGEST));
    let transmitter = Transmitter::new(port, events.clone(), memory);
    let mut threads = QueueThreads::new(ThreadKind::Net);
    threads.start_with_file("rx", queue, receiver, events.clone(), log.clone()).unwrap();
    threads.start_with_file("tx", sender.queue(), transmitter, events, log).unwrap();
    for round in 0..32u8 {
        sender.put(BUFFERS, &[round; 100]);
        sender.add(&[(BUFFERS + 0x8_0000, 12), (BUFFERS, 88)], &[]);
        sender.kick.write(1).unwrap();
        let mut packet = [0; 200];
        assert_eq!(network.recv(&mut packet).unwrap(), 100);
        assert_eq!(packet[12..100], [round; 88]);
        network.send(&[round; 50]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let used = loop {
            let used = driver.used();
            if !used.is_empty() || Instant::now() > deadline {
                break used;
            }
            std::thread::yield_now();
        };
        assert_eq!(used, [(round.into(), 50)]);
    }
    threads.stop();
    while !threads.is_stopped() {
        std::thread::yield_now();
    }
}
