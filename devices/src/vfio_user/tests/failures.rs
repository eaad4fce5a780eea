//! Servers that die, hang, or answer nonsense.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::budget::TimeBudget;
use super::super::device::VfioUserDevice;
use super::super::testing::{
    Action, Handler, LONG_TIMEOUT, Request, SHORT_TIMEOUT, message, receive, words,
};
use super::{BAR0, eventually, lending, memory, server_but};
use crate::vfio::uapi::{DeviceCalls, IrqAction};

/// What servers do to a read of 4 bytes when they go wrong, and what is said of it.
fn nonsense() -> Vec<(&'static str, Handler)> {
    fn head(request: &Request) -> Vec<u8> {
        request.payload.clone()
    }
    fn case<F: FnMut(&Request) -> Action + Send + 'static>(
        why: &'static str,
        act: F,
    ) -> (&'static str, Handler) {
        (why, Box::new(act))
    }
    let none = "a reply to no request";
    vec![
        case("closed the connection", |_| Action::Close),
        case("doesn't answer VFIO_USER_REGION_READ", |_| Action::Ignore),
        case(none, |r| Action::Send(message(r.id ^ 1, 9, 1, 0, &[head(r), vec![0; 4]].concat()))),
        case(none, |r| Action::Send(message(r.id, 10, 1, 0, &[head(r), vec![0; 4]].concat()))),
        case(none, |r| {
            Action::Send([r.answer(&[head(r), vec![0; 4]].concat()), r.answer(&[])].concat())
        }),
        case("is invalid", |r| Action::Send(r.answer(&head(r)))),
        case("is invalid", |r| Action::Send(r.answer(&[head(r), vec![0; 3]].concat()))),
        case("is invalid", |r| Action::Send(r.answer(&[0; 20]))),
        case("is invalid", |r| Action::Send(r.answer(&[]))),
        case("a reply to VFIO_USER_REGION_READ of 21 bytes", |r| {
            Action::Send(r.answer(&[head(r), vec![0; 5]].concat()))
        }),
        case("a reply to VFIO_USER_REGION_READ of 4294967279 bytes", |r| {
            let mut bytes = r.answer(&[]);
            bytes[4..8].fill(0xff);
            Action::Send(bytes)
        }),
        case("a message of 15 bytes", |r| {
            let mut bytes = r.answer(&[]);
            bytes[4..8].copy_from_slice(&15u32.to_ne_bytes());
            Action::Send(bytes)
        }),
        case("a message with flags", |r| Action::Send(message(r.id, 9, 2, 0, &[]))),
        case("an error reply of 65553 bytes", |r| {
            Action::Send(message(r.id, 9, 0x21, 22, &vec![0; (64 << 10) + 17]))
        }),
        case("a request of 4294967279 bytes", |_| {
            let mut bytes = message(1, 11, 0, 0, &[]);
            bytes[4..8].fill(0xff);
            Action::Send(bytes)
        }),
        // Half a message, and then nothing.
        case("neither reads nor writes", |r| Action::Send(r.answer(&[0; 20])[..17].to_vec())),
        case("doesn't answer", |_| Action::Send(message(1, 99, 0x10, 0, &[]))),
    ]
}

/// Whether a device failed for this reason.
fn is_said(why: &str, failure: &str) -> bool {
    // Whoever listens and whoever waits for the answer may be the first to notice.
    failure.contains(why)
        || why == "neither reads nor writes" && failure.contains("doesn't answer VFIO_USER_REGION")
}

/// How long to wait for a server that goes wrong in this way.
fn deadline(why: &str) -> Duration {
    let silent = ["doesn't answer", "neither reads nor writes"];
    if silent.iter().any(|silent| why.contains(silent)) { SHORT_TIMEOUT } else { LONG_TIMEOUT }
}

#[test]
fn a_misbehaving_server_fails_its_device() {
    for (why, act) in nonsense() {
        let mut server = server_but(9, act);
        let device = server.connect_for(deadline(why)).unwrap();
        device.start_guest().unwrap();
        let started = Instant::now();
        let mut data = [0; 4];
        device.read(&BAR0, 0, &mut data).unwrap();
        if why.contains("to no request") && data == [0; 4] {
            // The answer was right, and something came after it.
            eventually(|| device.failure());
            device.read(&BAR0, 0, &mut data).unwrap();
        }
        assert!(started.elapsed() < LONG_TIMEOUT, "{why}");
        assert_eq!(data, [0xff; 4], "{why}");
        let failure = device.failure().unwrap();
        assert!(is_said(why, &failure), "{why}: {failure}");

        // From here on nothing is waited for, and nothing fails.
        let started = Instant::now();
        for _ in 0..100 {
            device.read(&BAR0, 0, &mut data).unwrap();
            device.write(&BAR0, 0, &data).unwrap();
            device.set_vectors(2, 0, &[None]).unwrap();
            device.set_irq(2, IrqAction::ClearTrigger).unwrap();
            device.reset().unwrap();
            device.unmap_dma(0, 1).unwrap();
        }
        // A guest that begins anew does so without the device.
        device.start_guest().unwrap();
        assert!(started.elapsed() < LONG_TIMEOUT, "{why}");
    }
}

#[test]
fn before_a_guest_a_failure_is_an_error() {
    for (why, act) in nonsense() {
        if why.contains("to no request") {
            continue;
        }
        let mut server = server_but(9, act);
        let device = server.connect_for(deadline(why)).unwrap();
        let error = device.read(&BAR0, 0, &mut [0; 4]).unwrap_err();
        assert!(is_said(why, &error.to_string()), "{why}: {error}");
        device.set_vectors(2, 0, &[None]).unwrap_err();
        assert!(is_said(why, &device.start_guest().unwrap_err()));
    }
}

#[test]
fn mapped_regions_of_a_dead_server_become_ones() {
    let file = memory(0x5000, libc::MFD_ALLOW_SEALING);
    let mut server = lending(&file, &[]);
    let device = server.connect().unwrap();
    let info = device.region_info(2).unwrap();
    let first = device.map(&info, 0..0x1000).unwrap();
    let rest = device.map(&info, 0x1000..0x4000).unwrap();
    let gone = device.map(&info, 0..0x4000).unwrap();
    first.write(0, 1);
    drop(gone);
    device.start_guest().unwrap();
    server.stream.shutdown(std::net::Shutdown::Both).unwrap();
    eventually(|| (rest.read(0x2ff8) == u64::MAX).then_some(()));
    assert_eq!(first.read(0), u64::MAX);
    // It is memory like any other, and the file isn't touched any more.
    first.write(0, 7);
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0x1000).unwrap();
    assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(device.map(&info, 0..0x1000).unwrap().read(0), u64::MAX);
}

#[test]
fn a_shortened_deadline_ends_waits() {
    let mut server = server_but(9, |_| Action::Ignore);
    // A tenth of it is what the end leaves.
    let device = Arc::new(server.connect_for(20 * SHORT_TIMEOUT).unwrap());
    device.start_guest().unwrap();
    let started = Instant::now();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let device = device.clone();
            thread::spawn(move || {
                let mut data = [0; 4];
                device.read(&BAR0, 0, &mut data).unwrap();
                data
            })
        })
        .collect();
    thread::sleep(SHORT_TIMEOUT / 10);
    device.shorten_deadline();
    for thread in waiting {
        assert_eq!(thread.join().unwrap(), [0xff; 4]);
    }
    assert!(started.elapsed() < LONG_TIMEOUT / 2, "{:?}", started.elapsed());
    // The server is told, too.
    (&server.stream).read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_server_that_reads_nothing_fails() {
    // It answers the first questions, and then leaves everything in the socket.
    let (stream, client) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = super::super::connection::Connection::over(client).unwrap();
    let serving = thread::spawn(move || {
        for payload in [super::super::testing::SMALL.to_vec(), words(&[16, 3, 9, 5])] {
            let request = receive(&stream).unwrap();
            (&mut &stream).write_all(&request.answer(&payload)).unwrap();
        }
        stream
    });
    let budget = TimeBudget::new(SHORT_TIMEOUT, || false);
    let device = VfioUserDevice::over(Path::new("/x"), socket, budget).unwrap();
    let _stream = serving.join().unwrap();
    device.start_guest().unwrap();
    // Ends of INTx interrupts, of which it is told without waiting for an answer.
    let resample = EventFd::new(EFD_NONBLOCK).unwrap();
    device.set_irq(0, IrqAction::SetUnmask(&resample)).unwrap();
    let failure = eventually(|| {
        for _ in 0..100 {
            resample.write(1).unwrap();
        }
        device.failure()
    });
    assert!(failure.contains("neither reads nor writes"), "{failure}");
}
