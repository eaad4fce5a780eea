//! A backend that is lost, and what the device of another is.

use super::*;
use crate::virtio::{QueueAddresses, VirtQueue};

/// `VIRTIO_NET_F_STATUS`: there is a link, whose state is at 6 in the configuration.
const LINK: u64 = 1 << 16;

/// A device whose backend has listened at a path.
struct Bench {
    directory: TempDir,
    device: VhostUserDevice,
    driver: Driver,
    told: Receiver<Request>,
}

impl Bench {
    fn new(options: Options, fake: Fake) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        let told = fake.listen(&path);
        let device = VhostUserDevice::connect(Target::Path(path, Peer::Any, None), options);
        Self { directory, device: device.unwrap(), driver: Driver::new(), told }
    }

    fn activate(&mut self) {
        self.device.activate(self.driver.activation(1 << 32)).unwrap();
    }

    fn stop(&mut self) {
        self.device.stop();
        until("it stops", || self.device.is_stopped());
    }

    /// The backend ends.
    fn lose(&self) {
        self.device.end_backend();
        while self.told.recv_timeout(SOON).is_ok() {}
    }

    /// There is another.
    fn listen(&mut self, fake: Fake) {
        self.told = fake.listen(&self.directory.as_path().join("socket"));
    }

    fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut config = [0xff; N];
        self.device.read_config(offset, &mut config);
        config
    }
}

#[test]
fn a_driver_that_begins_while_there_is_no_backend_gets_the_next() {
    for kind in ["net", "fs", BLOCK] {
        let fake = Fake { features: testing::FEATURES | LINK, ..Fake::default() };
        let mut bench = Bench::new(options(kind, 8), fake.clone());
        for _ in 0..2 {
            bench.activate();
            next(&bench.told, testing::SET_VRING_ENABLE);
            bench.stop();
            bench.lose();
            let before = bench.driver.events.generation();
            bench.driver.set_indices(3, 2);
            bench.activate();
            if kind == "net" {
                until("its link is down", || bench.config(6) == [0, 0]);
                until("it is told", || bench.driver.events.generation() != before);
            }
            bench.listen(fake.clone());
            // From the start on, whatever was in the ring.
            assert_eq!(next(&bench.told, testing::SET_VRING_BASE).payload, [0; 8]);
            next(&bench.told, testing::SET_VRING_ENABLE);
            until("it is kicked", || bench.driver.kick.read().is_ok());
            until("its link is up", || bench.config(6) == [7, 8]);
            assert!(!bench.driver.events.needs_reset(), "{kind}");
            bench.stop();
        }
    }
}

#[test]
fn what_may_not_be_resumed_is_not_where_the_next_backend_ends_in_its_beginning() {
    let mut bench = Bench::new(options("fs", 8), Fake::default());
    bench.activate();
    next(&bench.told, testing::SET_VRING_ENABLE);
    bench.stop();
    bench.lose();
    bench.activate();
    bench.listen(Fake { wrong: Some((testing::SET_VRING_KICK, Wrong::Die)), ..Fake::default() });
    until("it needs a reset", || bench.driver.events.needs_reset());
    bench.stop();
}

#[test]
fn a_driver_is_told_of_what_another_backend_has() {
    let fake = |last: u8| {
        let config = vec![1, 2, 3, 4, 5, 6, 7, last];
        Fake { config, ..Fake::default() }
    };
    let mut bench = Bench::new(options(BLOCK, 8), fake(8));
    bench.activate();
    next(&bench.told, testing::SET_VRING_ENABLE);
    // The same, and another.
    for (last, generation) in [(8, 0), (9, 1)] {
        bench.lose();
        bench.listen(fake(last));
        until("its driver looks", || bench.driver.call.read().is_ok());
        assert_eq!(bench.driver.events.generation(), generation);
        assert_eq!(bench.config(7), [last]);
    }
    // The driver has read that of the last before it begins.
    bench.stop();
    bench.lose();
    bench.listen(fake(10));
    bench.driver.changed.read().unwrap();
    bench.activate();
    until("it is told", || bench.driver.changed.read().is_ok());
    assert_eq!((bench.driver.events.generation(), bench.config(7)), (2, [10]));
}

#[test]
fn buffers_for_events_are_no_requests() {
    for (kind, requests, goes_on) in [("scsi", 7, true), ("scsi", 8, false), ("can", 7, false)] {
        let mut bench = Bench::new(two(options(kind, 0)), Fake::default());
        let mut activation = bench.driver.activation(1 << 32);
        bench.driver.set_indices(requests, 7);
        // The other has 5 buffers, as always.
        let rings = [0x4000, 0x5000, 0x6000].map(|at| testing::RAM + at);
        let [descriptors, available, used] = rings;
        let memory = bench.driver.memory.clone();
        let index = vm_memory::GuestAddress(available + 2);
        vm_memory::Bytes::write_obj(&memory, 5u16, index).unwrap();
        let addresses = QueueAddresses { descriptors, available, used };
        let [kick, call] = [&bench.driver.kick, &bench.driver.call].map(|fd| fd.try_clone());
        let eventfds = (kick.unwrap(), call.unwrap());
        let queue = VirtQueue::new(1, (16, addresses), 1 << 32, memory, eventfds).unwrap();
        activation.queues.push(queue);
        bench.device.activate(activation).unwrap();
        next(&bench.told, testing::SET_VRING_ENABLE);
        next(&bench.told, testing::SET_VRING_ENABLE);
        bench.lose();
        if !goes_on {
            until("it fails", || bench.driver.events.needs_reset());
            continue;
        }
        bench.listen(Fake::default());
        for base in [[0, 0, 0, 0, 7, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(next(&bench.told, testing::SET_VRING_BASE).payload, base);
        }
        next(&bench.told, testing::SET_VRING_ENABLE);
        assert!(!bench.driver.events.needs_reset());
    }
}

#[test]
fn a_device_that_begins_again_before_it_has_stopped_is_active() {
    let fake = Fake { wrong: Some((testing::GET_VRING_BASE, Wrong::Hang)), ..Fake::default() };
    let mut bench = Bench::new(options(BLOCK, 0), fake);
    bench.activate();
    next(&bench.told, testing::SET_VRING_ENABLE);
    bench.listen(Fake::default());
    bench.device.stop();
    // The driver hasn't waited.
    bench.activate();
    next(&bench.told, testing::SET_VRING_ENABLE);
    assert!(!bench.device.is_stopped());
    bench.stop();
    next(&bench.told, testing::GET_VRING_BASE);
}

#[test]
fn a_device_has_no_more_queues_than_it_has() {
    for (queues, features, told) in [(1, 0, 1), (2, 1 << 12, 2)] {
        let mut config = vec![0; 60];
        config[34..36].copy_from_slice(&[128, 0]);
        let features_of_backend = testing::FEATURES & !(1 << 3) | 1 << 12;
        let fake = Fake { features: features_of_backend, config, ..Fake::default() };
        let plain = options(BLOCK, 60);
        let options = Options { kind: Kind { queues, ..plain.kind }, ..plain };
        let mut bench = Bench::new(options, fake);
        assert_eq!((bench.device.features(), bench.config(34)), (features, [told, 0]));
    }
}

#[test]
fn a_change_of_no_configuration_is_none() {
    let (mut device, told) = connect(Fake::default(), options("rng", 0)).unwrap();
    let channel = next(&told, testing::SET_BACKEND_REQ_FD).files.pop().unwrap();
    let channel = UnixStream::from(std::os::fd::OwnedFd::from(channel));
    let driver = Driver::new();
    device.activate(driver.activation(1 << 32)).unwrap();
    next(&told, testing::SET_VRING_ENABLE);
    for _ in 0..2 {
        // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG with an answer wanted.
        let message = [2u32, 9, 0].map(u32::to_le_bytes).concat();
        std::io::Write::write_all(&mut &channel, &message).unwrap();
        let mut answer = [0; 20];
        std::io::Read::read_exact(&mut &channel, &mut answer).unwrap();
    }
    device.stop();
    until("it stops", || device.is_stopped());
    next(&told, testing::RESET_DEVICE);
    assert!(!driver.events.needs_reset());
}
