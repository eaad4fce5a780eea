//! What a server asks for by itself: memory, by messages.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::testing::{Action, Request, Server, message, receive};
use super::{BAR0, eventually, server_but};
use crate::vfio::uapi::{DeviceCalls, IrqAction};

/// The payload of a request for memory, without data.
fn span(at: u64, size: u64) -> Vec<u8> {
    [at, size].map(u64::to_ne_bytes).concat()
}

/// The version data of a server whose own requests go by the connection that came first.
pub(super) fn with_twin(index: usize) -> Vec<u8> {
    let json = format!(
        "{{\"capabilities\":{{\"max_msg_fds\":8,\"twin_socket\":{{\"supported\":true,\
         \"fd_index\":{index}}}}}}}\0"
    );
    [&b"\0\0\x01\0"[..], json.as_bytes()].concat()
}

/// A server with such a connection, and its end.
fn twin_server() -> (Server, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = File::from(std::os::fd::OwnedFd::from(theirs));
    let server = server_but(1, move |request| {
        Action::SendWithFile(request.answer(&with_twin(0)), theirs.try_clone().unwrap())
    });
    (server, ours)
}

/// Asks for memory as libvfio-user does: whatever comes next is taken for the answer.
fn ask(stream: &UnixStream, id: u16, command: u16, payload: &[u8]) -> Request {
    (&mut &*stream).write_all(&message(id, command, 0, 0, payload)).unwrap();
    let answer = receive(stream).unwrap();
    assert_eq!((answer.id, answer.command, answer.flags & 0xf), (id, command, 1));
    answer
}

#[test]
fn requests_of_the_server_are_served() {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let told = answers.clone();
    let mut server = Server::with(move |request| {
        if request.flags & 1 != 0 {
            told.lock().unwrap().push((request.id, request.flags, request.payload.clone()));
            return Action::Ignore;
        }
        Action::Default
    });
    let device = server.connect().unwrap();
    let mut bytes = [1u8, 2, 3, 4];
    let host = NonNull::from(&mut bytes).cast::<u8>();
    // SAFETY: the array outlives the device, and nothing else looks at it meanwhile.
    unsafe { device.map_dma(0x1000, host, 4).unwrap() };
    let requests = [
        (11u16, span(0x1001, 3)),
        (12, [span(0x1000, 1), vec![9]].concat()),
        (11, span(0x1001, 4)),
        (11, span(0x1000, 1 << 40)),
        (12, [span(0x1000, 2), vec![1]].concat()),
        (12, vec![1, 2, 3]),
        (77, vec![]),
    ];
    for (command, payload) in requests {
        (&mut &server.stream).write_all(&message(command, command, 0, 0, &payload)).unwrap();
    }
    let answers = eventually(|| {
        let answers = answers.lock().unwrap();
        (answers.len() == 7).then(|| answers.clone())
    });
    let read = [span(0x1001, 3), vec![2, 3, 4]].concat();
    let refused = |id| (id, 0x21, vec![]);
    let expected = [
        (11, 1, read),
        (12, 1, span(0x1000, 1)),
        refused(11),
        refused(11),
        refused(12),
        refused(12),
        refused(77),
    ];
    assert_eq!(answers, expected);
    drop(device);
    assert_eq!(bytes, [9, 2, 3, 4]);
}

#[test]
fn a_server_requests_before_it_replies() {
    // By the same connection, and under the same number, as libvfio-user does if it must.
    let stream = Arc::new(Mutex::new(None::<UnixStream>));
    let shared = stream.clone();
    let mut server = server_but(9, move |request| {
        let stream = shared.lock().unwrap();
        let stream = stream.as_ref().unwrap();
        let read = ask(stream, request.id, 11, &span(0x1000, 4));
        ask(stream, request.id, 12, &[span(0x1004, 4), read.payload[16..].to_vec()].concat());
        Action::Default
    });
    *stream.lock().unwrap() = Some(server.stream.try_clone().unwrap());
    let device = server.connect().unwrap();
    let mut bytes = [1u8, 2, 3, 4, 0, 0, 0, 0];
    // SAFETY: the array outlives the device, and nothing else looks at it meanwhile.
    unsafe { device.map_dma(0x1000, NonNull::from(&mut bytes).cast(), 8).unwrap() };
    // A guest that ends interrupts meanwhile doesn't get in between.
    let resample = EventFd::new(EFD_NONBLOCK).unwrap();
    device.set_irq(0, IrqAction::SetUnmask(&resample)).unwrap();
    for _ in 0..500 {
        resample.write(1).unwrap();
        device.read(&BAR0, 0, &mut [0; 4]).unwrap();
    }
    assert_eq!(device.failure(), None);
    eventually(|| (!server.device_state.lock().unwrap().irqs.is_empty()).then_some(()));
    drop(device);
    assert_eq!(bytes, [1, 2, 3, 4, 1, 2, 3, 4]);
}

#[test]
fn a_server_requests_at_any_time_on_its_twin_socket() {
    let (mut server, twin) = twin_server();
    let device = server.connect().unwrap();
    let mut bytes = [5u8; 64];
    // SAFETY: the array outlives the device, and nothing else looks at it meanwhile.
    unsafe { device.map_dma(0x1000, NonNull::from(&mut bytes).cast(), 64).unwrap() };
    device.start_guest().unwrap();
    let asking = std::thread::spawn(move || {
        for id in 0..1000u16 {
            let answer = ask(&twin, id, 11, &span(0x1020, 32));
            assert_eq!(answer.payload[16..], [5; 32]);
            ask(&twin, id, 12, &[span(0x1000, 1), vec![id.to_ne_bytes()[0]]].concat());
        }
        assert_eq!(ask(&twin, 1, 11, &span(0x1000, 65)).flags, 0x21);
        twin
    });
    while !asking.is_finished() {
        device.write(&BAR0, 0, &[1; 8]).unwrap();
    }
    let twin = asking.join().unwrap();
    assert_eq!(device.failure(), None);
    // An answer makes no sense where nothing is asked.
    (&mut &twin).write_all(&message(1, 9, 1, 0, &[])).unwrap();
    let failure = eventually(|| device.failure());
    assert!(failure.contains("a reply on its twin_socket"), "{failure}");
}

#[test]
fn closing_the_twin_socket_fails_the_device() {
    let (mut server, twin) = twin_server();
    let device = server.connect().unwrap();
    device.start_guest().unwrap();
    drop(twin);
    let failure = eventually(|| device.failure());
    assert!(failure.contains("closed the connection"), "{failure}");
    // The other is closed with it.
    eventually(|| receive(&server.stream).is_none().then_some(()));
}

#[test]
fn an_invalid_twin_socket_is_refused() {
    let (stream, _other) = UnixStream::pair().unwrap();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let null = File::open("/dev/null").unwrap();
    let cases = [
        (stream.as_raw_fd(), 1, "without its descriptor"),
        (stream.as_raw_fd(), usize::MAX, "without its descriptor"),
        (datagram.as_raw_fd(), 0, "a twin_socket that is none"),
        (listener.as_raw_fd(), 0, "a twin_socket that is none"),
        (null.as_raw_fd(), 0, "a twin_socket that is none"),
    ];
    for (fd, index, why) in cases {
        // SAFETY: open for as long as this runs.
        let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let file = File::from(file.try_clone_to_owned().unwrap());
        let mut server = server_but(1, move |request| {
            Action::SendWithFile(request.answer(&with_twin(index)), file.try_clone().unwrap())
        });
        let error = server.connect().unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
}
