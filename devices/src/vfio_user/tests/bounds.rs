//! How long a server may keep strait waiting, by its answers or by the descriptors it sends.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::budget::TimeBudget;
use super::super::device::VfioUserDevice;
use super::super::fds::run_with_deadline;
use super::super::socket::Socket;
use super::super::testing::{Act, LONG, SHORT, SMALL, Server, receive, words};
use super::{BAR0, server_but};
use crate::vfio::uapi::DeviceCalls;

/// A server that answers as usual, but each time so late.
fn late(by: Duration) -> Server {
    Server::with(move |_| {
        thread::sleep(by);
        Act::Usual
    })
}

#[test]
fn opening_a_device_has_one_budget() {
    // Each answer is in time, all of them aren't.
    let mut server = late(SHORT / 8);
    let started = Instant::now();
    let device = server.connect_for(SHORT).unwrap();
    let failed = (0..100).find(|_| device.region_info(0).is_err()).unwrap();
    let took = started.elapsed();
    assert!(failed < 50 && took < LONG, "{failed} in {took:?}");
    assert!(device.failure().unwrap().contains("doesn't answer VFIO_USER_DEVICE_GET_REGION_INFO"));
}

#[test]
fn a_guest_s_access_of_many_messages_has_one_budget() {
    let mut server = late(SHORT / 8);
    let device = server.connect_for(SHORT).unwrap();
    device.start_guest().unwrap();
    let started = Instant::now();
    device.set_vectors(2, 0, &[None; 2000]).unwrap();
    // 8 bytes each.
    device.read(&BAR0, 0, &mut [0; 4096]).unwrap();
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
    device.failure().unwrap();
}

#[test]
fn the_end_has_one_budget() {
    // A tenth of the whole for all of it.
    let mut server = late(LONG / 100);
    let device = server.connect().unwrap();
    device.start_guest().unwrap();
    device.shorten_deadline();
    let started = Instant::now();
    for _ in 0..100 {
        let _ = device.reset();
        let _ = device.set_vectors(2, 0, &[None; 100]);
    }
    let took = started.elapsed();
    assert!(took < LONG, "{took:?}");
    device.failure().unwrap();
}

/// Of each use its own: what asks for the end after some time, and what tells that it was asked for.
macro_rules! stop {
    () => {{
        static STOP: AtomicBool = AtomicBool::new(false);
        let after = |wait: Duration| {
            STOP.store(false, Ordering::Relaxed);
            thread::spawn(move || {
                thread::sleep(wait);
                STOP.store(true, Ordering::Relaxed);
            })
        };
        (after, || STOP.load(Ordering::Relaxed))
    }};
}

#[test]
fn a_stop_ends_the_opening() {
    let (stop_after, is_asked_to_stop) = stop!();
    for command in [1, 4] {
        let mut server = server_but(command, |_| Act::Ignore);
        server.is_asked_to_stop = is_asked_to_stop;
        let (started, stopping) = (Instant::now(), stop_after(SHORT / 10));
        let error = server.connect().unwrap_err();
        assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
        assert!(error.to_string().contains("was told to end"), "{error}");
        stopping.join().unwrap();
    }
}

#[test]
fn a_stop_ends_a_send_that_the_server_blocks() {
    let (stop_after, is_asked_to_stop) = stop!();
    let (server, client) = UnixStream::pair().unwrap();
    let filling = client.try_clone().unwrap();
    let socket = Socket::over(client).unwrap();
    let serving = thread::spawn(move || {
        for payload in [SMALL.to_vec(), words(&[16, 3, 9, 5])] {
            let request = receive(&server).unwrap();
            (&mut &server).write_all(&request.answer(&payload)).unwrap();
        }
        server
    });
    let budget = TimeBudget::new(LONG, is_asked_to_stop);
    let device = VfioUserDevice::over(Path::new("/x"), socket, budget).unwrap();
    let _server = serving.join().unwrap();
    // It reads no more, so there is no room for the next request.
    while (&mut &filling).write(&[0; 4096]).is_ok() {}
    let (started, stopping) = (Instant::now(), stop_after(SHORT / 10));
    let error = device.reset().unwrap_err();
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert!(error.source.to_string().contains("was told to end"), "{}", error.source);
    stopping.join().unwrap();
}

#[test]
fn a_stop_ends_the_wait_for_a_server_s_file() {
    let (stop_after, is_asked_to_stop) = stop!();
    let budget = TimeBudget::new(LONG, is_asked_to_stop);
    let (started, stopping) = (Instant::now(), stop_after(SHORT / 10));
    let looked = run_with_deadline(&mut budget.begin(), || thread::sleep(2 * LONG)).unwrap();
    assert!(looked.is_none() && started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    stopping.join().unwrap();
}

/// A socket whose last close takes half a minute: it lingers, and what it has sent is read by nobody.
fn lingering(listener: &TcpListener) -> (OwnedFd, TcpStream) {
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (receiver, _) = listener.accept().unwrap();
    let set = |option, value: &[libc::c_int]| {
        let size = libc::socklen_t::try_from(size_of_val(value)).unwrap();
        let (fd, value) = (sender.as_raw_fd(), value.as_ptr().cast());
        // SAFETY: the value is as large as said.
        assert_eq!(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, size) }, 0);
    };
    set(libc::SO_SNDBUF, &[4096]);
    // A struct linger: on, 30 s.
    set(libc::SO_LINGER, &[1, 30]);
    sender.set_nonblocking(true).unwrap();
    while sender.write(&[0; 65536]).is_ok() {}
    sender.set_nonblocking(false).unwrap();
    (sender.into(), receiver)
}

#[test]
fn descriptors_whose_close_lingers_hold_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut receivers = Vec::new();
    let mut server = server_but(5, move |request| {
        let (socket, receiver) = lingering(&listener);
        receivers.push(receiver);
        let info = words(&[32, 7, request.u32(8), 0, 0x4000, 0, 0, 0]);
        Act::Lend(request.answer(&info), File::from(socket))
    });
    let device = server.connect().unwrap();
    let started = Instant::now();
    assert!(!device.region_info(0).unwrap().mappable);
    device.read(&BAR0, 0, &mut [0; 4]).unwrap();
    for index in 1..9 {
        device.region_info(index).unwrap();
    }
    // One that sends more and more of them is given up.
    let failed = (0..100).find(|_| device.region_info(0).is_err()).unwrap();
    assert!(failed > 32, "{failed}");
    let failure = device.failure().unwrap();
    assert!(failure.contains("more descriptors than can be closed"), "{failure}");
    drop(device);
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
}

#[test]
fn a_connection_with_descriptors_that_nobody_took_is_left_at_once() {
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = Server::new();
    let device = server.connect().unwrap();
    let (socket, _receiver) = lingering(&listener);
    // Half a header, and its other half with a descriptor: the conversation is over before that.
    let started = Instant::now();
    server.stream.send_with_fd(&[0u8; 8][..], socket.as_raw_fd()).unwrap();
    server.stream.send_with_fd(&[0xffu8; 64][..], socket.as_raw_fd()).unwrap();
    // Refused if the client has left by now.
    let _ = server.stream.send_with_fd(&[0u8; 64][..], socket.as_raw_fd());
    drop(socket);
    drop(device);
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
}

#[test]
fn what_takes_too_long_aside_goes_on_alone() {
    let budget = TimeBudget::new(SHORT, || false);
    let started = Instant::now();
    assert_eq!(run_with_deadline(&mut budget.begin(), || 7).unwrap(), Some(7));
    let hanging = run_with_deadline(&mut budget.begin(), || thread::sleep(LONG)).unwrap();
    assert_eq!(hanging, None);
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
}
