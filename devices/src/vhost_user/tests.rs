//! Tests of the frontend against a backend that does as it is told.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use boot::help::Help;
use vmm_sys_util::tempdir::TempDir;

use super::testing::{self, Driver, Fake, Request, SOON, Wrong};
use super::*;
use crate::peer::Peer;
use crate::virtio::Device;

mod again;

/// Of a kind that is reached again when no request is under way.
const BLOCK: &str = "2";

fn options(kind: &str, config: u16) -> Options {
    let kind = Kind::parse(kind).unwrap();
    Options {
        name: "/run/backend.sock".into(),
        option: "--vhost-user TYPE,socket=/run/backend.sock".into(),
        kind: Kind { queues: 1, ..kind },
        config: ConfigSource::Backend(config),
    }
}

fn connect(
    fake: Fake,
    options: Options,
) -> Result<(VhostUserDevice, Receiver<Request>), VhostUserError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let told = fake.serve(theirs);
    VhostUserDevice::connect(Target::Started(Some(ours), Box::new(Endless)), options).map(
        |mut device| {
            device.prepare(&[]).unwrap();
            (device, told)
        },
    )
}

/// A program that runs on.
struct Endless;

impl Program for Endless {
    fn ending(&mut self) -> Option<String> {
        None
    }

    fn restart(&mut self) -> io::Result<UnixStream> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A program that has ended, and is started again once; what the next is told comes by the sender.
struct Again(Option<Sender<Receiver<Request>>>);

impl Program for Again {
    fn ending(&mut self) -> Option<String> {
        Some("ended".to_owned())
    }

    fn restart(&mut self) -> io::Result<UnixStream> {
        let told = self.0.take().ok_or(io::ErrorKind::Unsupported)?;
        let (ours, theirs) = UnixStream::pair()?;
        told.send(Fake::default().serve(theirs)).unwrap();
        Ok(ours)
    }
}

/// The same with two queues.
fn two(options: Options) -> Options {
    Options { kind: Kind { queues: 2, ..options.kind }, ..options }
}

/// The next request of this code.
fn next(told: &Receiver<Request>, code: u32) -> Request {
    loop {
        let request = told.recv_timeout(SOON).unwrap();
        if request.code == code {
            return request;
        }
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_device_is_what_its_backend_offers() {
    let (mut device, told) = connect(Fake::default(), options(BLOCK, 8)).unwrap();
    assert_eq!((device.features(), device.ring_features()), (1 << 3, 1 << 28));
    assert_eq!((device.device_type().id, device.queue_sizes()), (2, vec![128]));
    let mut config = [0xff; 4];
    device.read_config(6, &mut config);
    assert_eq!(config, [7, 8, 0, 0]);
    device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 4]);
    // What is written is told, and read back.
    device.write_config(6, &[9]);
    device.write_config(8, &[9]);
    device.write_config(u64::MAX, &[9]);
    let written = next(&told, testing::SET_CONFIG);
    assert_eq!(written.payload, [6, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9]);
    next(&told, testing::GET_CONFIG);
    device.read_config(5, &mut config);
    assert_eq!(config, [6, 9, 8, 0]);
}

#[test]
fn an_own_configuration_comes_before_the_backend_s() {
    let own = OwnConfig { bytes: vec![5], features: 1 << 5 };
    for (config, protocol, expected) in [
        (ConfigSource::Own(own.clone()), testing::PROTOCOL, (5, 1 << 5 | 1 << 3)),
        (ConfigSource::Either(8, own.clone()), testing::PROTOCOL, (1, 1 << 3)),
        (ConfigSource::Either(8, own), 0, (5, 1 << 5 | 1 << 3)),
    ] {
        let fake = Fake { protocol, ..Fake::default() };
        let (mut device, _told) = connect(fake, Options { config, ..options(BLOCK, 0) }).unwrap();
        let mut first = [0];
        device.read_config(0, &mut first);
        assert_eq!((first[0], device.features()), expected);
    }
}

#[test]
fn rings_and_memory_are_handed_over_and_taken_back() {
    let (mut device, told) = connect(Fake::default(), options(BLOCK, 0)).unwrap();
    let driver = Driver::new();
    for _ in 0..2 {
        let features = 1 << 32 | 1 << 3 | 1 << 28;
        device.activate(driver.activation(features | 1 << 5)).unwrap();
        // What the backend doesn't offer isn't asked of it.
        assert_eq!(next(&told, testing::SET_FEATURES).u64(), features | 1 << 30);
        let table = next(&told, testing::SET_MEM_TABLE);
        let words: Vec<_> =
            table.payload.chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).collect();
        assert_eq!(words, [1, testing::RAM, 0x10_0000, testing::RAM, 0]);
        assert_eq!(table.files.len(), 1);
        let ring = next(&told, testing::SET_VRING_ADDR);
        assert_eq!(&ring.payload[8..16], testing::RAM.to_le_bytes());
        assert_eq!(next(&told, testing::SET_VRING_BASE).payload, [0; 8]);
        let call = next(&told, testing::SET_VRING_CALL).files.pop().unwrap();
        let kick = next(&told, testing::SET_VRING_KICK).files.pop().unwrap();
        assert_eq!(next(&told, testing::SET_VRING_ENABLE).payload, [0, 0, 0, 0, 1, 0, 0, 0]);
        // What came before the queue was enabled may be lost: it is kicked then.
        until("it is kicked", || driver.kick.read().is_ok());
        driver.kick.write(3).unwrap();
        let mut count = [0; 8];
        std::io::Read::read_exact(&mut &kick, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 3);
        std::io::Write::write_all(&mut &call, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(driver.call.read().unwrap(), 1);
        assert!(!device.is_stopped());
        device.stop();
        next(&told, testing::GET_VRING_BASE);
        next(&told, testing::RESET_DEVICE);
        until("it stops", || device.is_stopped());
    }
    assert!(!driver.events.needs_reset());
}

#[test]
fn what_a_backend_lacks_is_told() {
    let lacking = |fake: Fake, options: Options| connect(fake, options).err().unwrap();
    let legacy = Fake { features: 1 << 30, ..Fake::default() };
    let plain = Fake { features: 1 << 32, ..Fake::default() };
    let few = Fake { queues: 1, ..Fake::default() };
    for (fake, options, text, help) in [
        (legacy, options(BLOCK, 0), "virtio 1.0", "VERSION_1"),
        (plain, options(BLOCK, 8), "no configuration", "config-size=0"),
        (few, two(options(BLOCK, 0)), "has 1 queues", "queues=1"),
    ] {
        let error = lacking(fake, options);
        assert!(error.to_string().contains(text), "{error}");
        assert!(error.help().unwrap().contains(help), "{error}");
    }
    // One that knows no features of the protocol serves, too.
    let plain = Fake { features: 1 << 32, ..Fake::default() };
    let (mut device, told) = connect(plain, options(BLOCK, 0)).unwrap();
    device.activate(Driver::new().activation(1 << 32)).unwrap();
    next(&told, testing::SET_VRING_KICK);
    device.stop();
    until("it stops", || device.is_stopped());
    assert_eq!(told.try_iter().filter(|r| r.code == testing::SET_VRING_ENABLE).count(), 0);
}

#[test]
fn no_backend_keeps_strait_waiting() {
    let ways = [
        (Wrong::Hang, "doesn't answer"),
        (Wrong::Dribble, ""),
        (Wrong::Die, "closed the connection"),
        (Wrong::Nonsense, "doesn't keep to the protocol"),
        (Wrong::Descriptors, "doesn't"),
    ];
    let requests = [testing::GET_FEATURES, testing::GET_CONFIG];
    let (wait, mut told) = (REPLY_TIMEOUT + Duration::from_secs(30), 0);
    std::thread::scope(|scope| {
        let all = requests.iter().flat_map(|request| ways.iter().map(move |way| (*request, way)));
        let runs: Vec<_> = all
            .map(|(request, (way, text))| {
                scope.spawn(move || {
                    let fake = Fake { wrong: Some((request, *way)), ..Fake::default() };
                    let started = Instant::now();
                    let error = connect(fake, options(BLOCK, 8)).err().unwrap();
                    assert!(started.elapsed() < wait, "{way:?}");
                    assert!(error.to_string().contains(text), "{way:?}: {error}");
                    assert!(error.help().is_some(), "{error}");
                })
            })
            .collect();
        for run in runs {
            run.join().unwrap();
            told += 1;
        }
    });
    assert_eq!(told, 10);
}

#[test]
fn a_backend_that_goes_wrong_later_leaves_a_device_that_needs_a_reset() {
    std::thread::scope(|scope| {
        for request in [testing::SET_MEM_TABLE, testing::SET_VRING_KICK, testing::GET_VRING_BASE] {
            for way in [Wrong::Hang, Wrong::Die, Wrong::Refuse, Wrong::Nonsense, Wrong::Descriptors]
            {
                scope.spawn(move || {
                    let fake = Fake { wrong: Some((request, way)), ..Fake::default() };
                    let (mut device, _told) = connect(fake, options(BLOCK, 0)).unwrap();
                    let driver = Driver::new();
                    device.activate(driver.activation(1 << 32)).unwrap();
                    if request != testing::GET_VRING_BASE {
                        until("it fails", || driver.events.needs_reset());
                    }
                    device.stop();
                    until("it stops", || device.is_stopped());
                    let started = Instant::now();
                    drop(device);
                    assert!(started.elapsed() < REPLY_TIMEOUT, "{way:?}");
                });
            }
        }
    });
}

/// A device whose backend listens at a path, with a driver that has it begin.
fn listening(kind: &str, fake: Fake) -> (TempDir, VhostUserDevice, Receiver<Request>, Driver) {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("socket");
    let told = fake.listen(&path);
    let target = Target::Path(path, Peer::Any, None);
    let mut device = VhostUserDevice::connect(target, options(kind, 0)).unwrap();
    let driver = Driver::new();
    device.activate(driver.activation(1 << 32)).unwrap();
    next(&told, testing::SET_VRING_ENABLE);
    (directory, device, told, driver)
}

#[test]
fn a_backend_that_was_started_again_goes_on_where_the_last_one_ended() {
    let with_inflight = testing::PROTOCOL | testing::INFLIGHT;
    for (kind, protocol, indices, goes_on) in [
        // In order: from the used index on.
        ("rng", testing::PROTOCOL, (9, 7), true),
        (BLOCK, testing::PROTOCOL, (7, 7), true),
        (BLOCK, testing::PROTOCOL, (8, 7), false),
        (BLOCK, with_inflight, (8, 7), true),
        ("fs", testing::PROTOCOL, (7, 7), false),
    ] {
        let fake = Fake { protocol, ..Fake::default() };
        let (directory, device, told, driver) = listening(kind, fake.clone());
        driver.set_indices(indices.0, indices.1);
        device.end_backend();
        while told.recv_timeout(SOON).is_ok() {}
        if !goes_on {
            until("it fails", || driver.events.needs_reset());
            continue;
        }
        let told = fake.listen(&directory.as_path().join("socket"));
        if protocol == with_inflight {
            assert_eq!(next(&told, testing::SET_INFLIGHT_FD).files.len(), 1);
        }
        assert_eq!(next(&told, testing::SET_VRING_BASE).payload, [0, 0, 0, 0, 7, 0, 0, 0]);
        next(&told, testing::SET_VRING_ENABLE);
        until("it is kicked", || driver.kick.read().is_ok());
        until("its driver looks", || driver.call.read().is_ok());
        assert!(!driver.events.needs_reset());
    }
}

#[test]
fn a_program_is_started_again_or_its_device_needs_a_reset() {
    let (tell, again) = mpsc::channel();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let told = Fake::default().serve(theirs);
    let target = Target::Started(Some(ours), Box::new(Again(Some(tell))));
    let mut device = VhostUserDevice::connect(target, options("rng", 0)).unwrap();
    let driver = Driver::new();
    device.activate(driver.activation(1 << 32)).unwrap();
    next(&told, testing::SET_VRING_ENABLE);
    driver.set_indices(9, 7);
    device.end_backend();
    let told = again.recv_timeout(SOON).unwrap();
    assert_eq!(next(&told, testing::SET_VRING_BASE).payload, [0, 0, 0, 0, 7, 0, 0, 0]);
    next(&told, testing::SET_VRING_ENABLE);
    until("its driver looks", || driver.call.read().is_ok());
    assert!(!driver.events.needs_reset());
    device.end_backend();
    until("it fails", || driver.events.needs_reset());
}

#[test]
fn a_guest_s_reset_takes_another_backend() {
    let (directory, mut device, told, driver) = listening("fs", Fake::default());
    device.end_backend();
    while told.recv_timeout(SOON).is_ok() {}
    until("it fails", || driver.events.needs_reset());
    device.stop();
    until("it stops", || device.is_stopped());
    driver.events.reset();
    let told = Fake::default().listen(&directory.as_path().join("socket"));
    device.activate(driver.activation(1 << 32)).unwrap();
    next(&told, testing::SET_VRING_ENABLE);
    assert!(!driver.events.needs_reset());
    // One that offers less isn't taken.
    device.stop();
    until("it stops", || device.is_stopped());
    device.end_backend();
    while told.recv_timeout(SOON).is_ok() {}
    let less = Fake { features: testing::FEATURES & !(1 << 3), ..Fake::default() };
    let _told = less.listen(&directory.as_path().join("socket"));
    device.activate(driver.activation(1 << 32)).unwrap();
    until("it fails", || driver.events.needs_reset());
}

#[test]
fn a_backend_tells_of_a_changed_configuration() {
    let (mut device, told) = connect(Fake::default(), options(BLOCK, 8)).unwrap();
    let channel = next(&told, testing::SET_BACKEND_REQ_FD).files.pop().unwrap();
    let channel = UnixStream::from(std::os::fd::OwnedFd::from(channel));
    let driver = Driver::new();
    device.activate(driver.activation(1 << 32)).unwrap();
    next(&told, testing::SET_VRING_ENABLE);
    // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, without and with an answer wanted.
    for flags in [1u32, 9] {
        let message = [2u32, flags, 0].map(u32::to_le_bytes).concat();
        std::io::Write::write_all(&mut &channel, &message).unwrap();
        next(&told, testing::GET_CONFIG);
        until("it is told", || driver.changed.read().is_ok());
    }
    let mut answer = [0; 20];
    std::io::Read::read_exact(&mut &channel, &mut answer).unwrap();
    assert_eq!((answer[0], answer[12..].to_vec()), (2, vec![0; 8]));
    assert_eq!(driver.events.generation(), 2);
    // Nonsense there is the end of it, and of nothing else.
    std::io::Write::write_all(&mut &channel, &[0xff; 64]).unwrap();
    device.stop();
    until("it stops", || device.is_stopped());
    next(&told, testing::RESET_DEVICE);
}

#[test]
fn a_backend_has_its_device_s_status() {
    let fake = Fake { protocol: testing::PROTOCOL | testing::STATUS, ..Fake::default() };
    let (_, changed) = fake.status.clone();
    let (mut device, told) = connect(fake, options(BLOCK, 8)).unwrap();
    let channel = next(&told, testing::SET_BACKEND_REQ_FD).files.pop().unwrap();
    let channel = UnixStream::from(std::os::fd::OwnedFd::from(channel));
    let driver = Driver::new();
    device.activate(driver.activation(1 << 32)).unwrap();
    next(&told, testing::SET_FEATURES);
    assert_eq!(next(&told, testing::SET_STATUS).u64(), 0b1011);
    next(&told, testing::SET_VRING_ENABLE);
    assert_eq!(next(&told, testing::SET_STATUS).u64(), 0b1111);
    // It wants to be reset, and says that something has changed.
    changed.store(0x40, Ordering::SeqCst);
    let message = [2u32, 1, 0].map(u32::to_le_bytes).concat();
    std::io::Write::write_all(&mut &channel, &message).unwrap();
    until("it fails", || driver.events.needs_reset());
    device.stop();
    until("it stops", || device.is_stopped());
    assert_eq!(next(&told, testing::SET_STATUS).u64(), 0);
    // It doesn't take the features.
    driver.events.reset();
    changed.store(0x8, Ordering::SeqCst);
    device.activate(driver.activation(1 << 32)).unwrap();
    until("it fails", || driver.events.needs_reset());
}

#[test]
fn sockets_that_are_none_are_told() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("socket");
    let connect = || {
        let options = options(BLOCK, 0);
        VhostUserDevice::connect(Target::Path(path.clone(), Peer::Own, None), options)
            .err()
            .unwrap()
    };
    assert!(connect().help().unwrap().contains("start the backend first"));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(connect().help().unwrap().contains("start the backend again"));
}
