//! How long a server may keep strait waiting, by its answers or by the descriptors it sends.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::super::budget::TimeBudget;
use super::super::connection::Connection;
use super::super::device::VfioUserDevice;
use super::super::fds::run_with_deadline;
use super::super::testing::{Action, LONG_TIMEOUT, SHORT_TIMEOUT, SMALL, Server, receive, words};
use super::{BAR0, server_but};
use crate::vfio::uapi::DeviceCalls;

/// A server that answers as usual, but each time so late.
fn late(by: Duration) -> Server {
    Server::with(move |_| {
        thread::sleep(by);
        Action::Default
    })
}

#[test]
fn requests_before_a_guest_have_one_budget() {
    // Each answer is in time, all of them aren't.
    let mut server = late(SHORT_TIMEOUT / 8);
    let started = Instant::now();
    let device = server.connect_for(SHORT_TIMEOUT).unwrap();
    let failed = (0..100).find(|_| device.region_info(0).is_err()).unwrap();
    let took = started.elapsed();
    assert!(failed < 50 && took < LONG_TIMEOUT, "{failed} in {took:?}");
    assert!(device.failure().unwrap().contains("doesn't answer VFIO_USER_DEVICE_GET_REGION_INFO"));
}

#[test]
fn a_guest_s_access_of_many_messages_has_one_budget() {
    let mut server = late(SHORT_TIMEOUT / 8);
    let device = server.connect_for(SHORT_TIMEOUT).unwrap();
    device.start_guest().unwrap();
    let started = Instant::now();
    device.set_vectors(2, 0, &[None; 2000]).unwrap();
    // 8 bytes each.
    device.read(&BAR0, 0, &mut [0; 4096]).unwrap();
    assert!(started.elapsed() < LONG_TIMEOUT, "{:?}", started.elapsed());
    device.failure().unwrap();
}

#[test]
fn teardown_has_one_budget() {
    // A tenth of the whole for all of it.
    let total = 20 * SHORT_TIMEOUT;
    let mut server = late(total / 100);
    let device = server.connect_for(total).unwrap();
    device.start_guest().unwrap();
    device.shorten_deadline();
    let started = Instant::now();
    for _ in 0..100 {
        let _ = device.reset();
        let _ = device.set_vectors(2, 0, &[None; 100]);
    }
    let took = started.elapsed();
    assert!(took < LONG_TIMEOUT, "{took:?}");
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
fn a_stop_request_ends_connecting() {
    let (stop_after, is_stop_requested) = stop!();
    for command in [1, 4] {
        let mut server = server_but(command, |_| Action::Ignore);
        server.is_stop_requested = is_stop_requested;
        let (started, stopping) = (Instant::now(), stop_after(SHORT_TIMEOUT / 10));
        let error = server.connect().unwrap_err();
        assert!(started.elapsed() < LONG_TIMEOUT / 2, "{:?}", started.elapsed());
        assert!(error.to_string().contains("was told to end"), "{error}");
        stopping.join().unwrap();
    }
}

#[test]
fn a_stop_request_ends_a_blocked_send() {
    let (stop_after, is_stop_requested) = stop!();
    let (server, client) = UnixStream::pair().unwrap();
    let filling = client.try_clone().unwrap();
    let socket = Connection::over(client).unwrap();
    let serving = thread::spawn(move || {
        for payload in [SMALL.to_vec(), words(&[16, 3, 9, 5])] {
            let request = receive(&server).unwrap();
            (&mut &server).write_all(&request.answer(&payload)).unwrap();
        }
        server
    });
    let budget = TimeBudget::new(LONG_TIMEOUT, is_stop_requested);
    let device = VfioUserDevice::over(Path::new("/x"), socket, budget).unwrap();
    let _server = serving.join().unwrap();
    // It reads no more, so there is no room for the next request.
    while (&mut &filling).write(&[0; 4096]).is_ok() {}
    let (started, stopping) = (Instant::now(), stop_after(SHORT_TIMEOUT / 10));
    let error = device.reset().unwrap_err();
    assert!(started.elapsed() < LONG_TIMEOUT / 2, "{:?}", started.elapsed());
    assert!(error.source.to_string().contains("was told to end"), "{}", error.source);
    stopping.join().unwrap();
}

#[test]
fn a_stop_request_ends_the_inspection_of_a_file() {
    let (stop_after, is_stop_requested) = stop!();
    let budget = TimeBudget::new(LONG_TIMEOUT, is_stop_requested);
    let (started, stopping) = (Instant::now(), stop_after(SHORT_TIMEOUT / 10));
    let looked = run_with_deadline(&mut budget.begin(), || thread::sleep(2 * LONG_TIMEOUT));
    assert!(looked.unwrap_err().why.contains("told to end"));
    assert!(started.elapsed() < LONG_TIMEOUT / 2, "{:?}", started.elapsed());
    stopping.join().unwrap();
}

/// A socket whose last close takes ten minutes: it lingers, and what it has sent is read by nobody.
fn lingering(listener: &TcpListener) -> (OwnedFd, TcpStream) {
    let set = |fd: &dyn AsRawFd, option, value: &[libc::c_int]| {
        let size = libc::socklen_t::try_from(size_of_val(value)).unwrap();
        let (fd, value) = (fd.as_raw_fd(), value.as_ptr().cast());
        // SAFETY: the value is as large as said.
        assert_eq!(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, size) }, 0);
    };
    // What is accepted has the listener's: little room, so that some of it stays with the sender.
    set(listener, libc::SO_RCVBUF, &[4096]);
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (receiver, _) = listener.accept().unwrap();
    set(&sender, libc::SO_SNDBUF, &[4096]);
    // A struct linger: on, 600 s.
    set(&sender, libc::SO_LINGER, &[1, 600]);
    sender.set_nonblocking(true).unwrap();
    for _ in 0..3 {
        while sender.write(&[0; 65536]).is_ok() {}
        thread::sleep(Duration::from_millis(1));
    }
    sender.set_nonblocking(false).unwrap();
    (sender.into(), receiver)
}

#[test]
fn closing_a_lingering_descriptor_blocks_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut receivers = Vec::new();
    let mut server = server_but(5, move |request| {
        let (socket, receiver) = lingering(&listener);
        receivers.push(receiver);
        let info = words(&[32, 7, request.u32(8), 0, 0x4000, 0, 0, 0]);
        Action::SendWithFile(request.answer(&info), File::from(socket))
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
    assert!(started.elapsed() < LONG_TIMEOUT, "{:?}", started.elapsed());
}

#[test]
fn a_connection_with_unreceived_descriptors_is_closed_at_once() {
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = Server::new();
    let device = server.connect().unwrap();
    let (socket, _receiver) = lingering(&listener);
    // Half a header, and its other half with a descriptor: the conversation is over before that.
    server.stream.send_with_fd(&[0u8; 8][..], socket.as_raw_fd()).unwrap();
    server.stream.send_with_fd(&[0xffu8; 64][..], socket.as_raw_fd()).unwrap();
    // Refused if the client has left by now.
    let _ = server.stream.send_with_fd(&[0u8; 64][..], socket.as_raw_fd());
    // The client's are the last ones, unless it has closed them: then this one lingers.
    let (done, closed) = mpsc::channel();
    thread::spawn(move || {
        drop(socket);
        let _ = done.send(());
    });
    let _ = closed.recv_timeout(SHORT_TIMEOUT);
    let started = Instant::now();
    drop(device);
    assert!(started.elapsed() < LONG_TIMEOUT, "{:?}", started.elapsed());
}

#[test]
fn work_on_a_file_is_left_after_its_deadline() {
    let budget = TimeBudget::new(SHORT_TIMEOUT, || false);
    let started = Instant::now();
    assert_eq!(run_with_deadline(&mut budget.begin(), || 7).unwrap(), 7);
    let failure =
        run_with_deadline(&mut budget.begin(), || thread::sleep(LONG_TIMEOUT)).unwrap_err();
    assert!(failure.why.contains("in time"), "{}", failure.why);
    assert!(started.elapsed() < LONG_TIMEOUT, "{:?}", started.elapsed());
}
