//! Clients of a pseudo-terminal and of a socket, with a console that takes so much.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};

use super::*;

/// How long anything may take on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// A console that takes input as long as it has room.
struct Device {
    got: Mutex<Vec<u8>>,
    room: Mutex<usize>,
    drained: EventFd,
}

impl Input for Device {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut room = self.room.lock().unwrap();
        let taken = bytes.len().min(*room);
        *room -= taken;
        self.got.lock().unwrap().extend(&bytes[..taken]);
        taken
    }
}

impl Device {
    fn make_room(&self, room: usize) {
        *self.room.lock().unwrap() = room;
        self.drained.write(1).unwrap();
    }

    fn got(&self) -> String {
        String::from_utf8(self.got.lock().unwrap().clone()).unwrap()
    }
}

struct Fixture {
    manager: EventManager<Clients>,
    buffer: Arc<ClientBuffer>,
    device: Arc<Device>,
}

impl Fixture {
    fn new(listener: Listener) -> Self {
        let backlog = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let drained = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let buffer = output::for_clients(backlog.try_clone().unwrap());
        let device = Arc::new(Device {
            got: Mutex::default(),
            room: Mutex::new(1 << 20),
            drained: drained.try_clone().unwrap(),
        });
        let mut manager = EventManager::new().unwrap();
        let clients = Clients::new(listener, buffer.clone(), backlog, device.clone(), drained);
        manager.add_subscriber(clients);
        Self { manager, buffer, device }
    }

    /// Runs the event loop until this is so.
    fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !condition(self) {
            assert!(began.elapsed() < LONG, "waiting until {what}");
            self.manager.run_with_timeout(10).unwrap();
        }
    }

    /// Runs the event loop until there is nothing to do; how many events there were.
    fn settle(&mut self) -> usize {
        let mut events = 0;
        for _ in 0..1000 {
            match self.manager.run_with_timeout(0).unwrap() {
                0 => return events,
                more => events += more,
            }
        }
        panic!("the event loop spins");
    }
}

fn on_terminal() -> (Fixture, String) {
    let (pty, path) = Pty::open().unwrap();
    (Fixture::new(Listener::new(Source::Pty(pty)).unwrap()), path)
}

fn on_socket(test: &str) -> (Fixture, PathBuf) {
    let path = std::env::temp_dir().join(format!("strait-{test}-{}", std::process::id()));
    (Fixture::new(Listener::socket(&path).unwrap()), path)
}

fn open(path: &str) -> File {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    File::options().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_nonblocking(true).unwrap();
    client
}

/// All that can be read now, appended.
fn read(client: &mut impl Read, text: &mut Vec<u8>) {
    let _ = client.read_to_end(text);
}

#[test]
fn a_terminal_s_client_comes_types_goes_and_comes_back() {
    let (mut fixture, path) = on_terminal();
    fixture.buffer.put(b"before;");
    fixture.settle();
    for round in ["first", "second", "third"] {
        let mut client = open(&path);
        client.write_all(round.as_bytes()).unwrap();
        let mut text = Vec::new();
        fixture.until("the client has it", |_| {
            read(&mut client, &mut text);
            text.ends_with(b";")
        });
        fixture.until("the guest has it", |fixture| fixture.device.got().ends_with(round));
        fixture.buffer.put(b"there;");
        let mut more = Vec::new();
        read(&mut client, &mut more);
        assert_eq!(more, b"there;");
        // The last words of a client that goes at once.
        client.write_all(b"bye").unwrap();
        drop(client);
        fixture.until("it is gone", |fixture| fixture.device.got().ends_with("bye"));
        fixture.settle();
        fixture.buffer.put(round.as_bytes());
        fixture.buffer.put(b" gone;");
        assert!(!fixture.buffer.has_backlog());
        if round == "second" {
            assert_eq!(text, b"first gone;");
        }
    }
    // Nobody is there: the loop sleeps.
    assert_eq!(fixture.settle(), 0);
}

#[test]
fn two_that_have_the_terminal_open_share_it() {
    let (mut fixture, path) = on_terminal();
    let (mut first, second) = (open(&path), open(&path));
    fixture.settle();
    drop(second);
    fixture.settle();
    first.write_all(b"still here").unwrap();
    fixture.until("it arrives", |fixture| fixture.device.got() == "still here");
    fixture.buffer.put(b"yes");
    let mut text = Vec::new();
    fixture.until("it is answered", |_| {
        read(&mut first, &mut text);
        text == b"yes"
    });
}

#[test]
fn the_next_client_of_a_socket_takes_the_place_of_one_that_is_stuck() {
    let (mut fixture, path) = on_socket("replaced");
    let mut stuck = connect(&path);
    fixture.settle();
    for _ in 0..1000 {
        fixture.buffer.put(&[b'x'; 1000]);
    }
    assert!(fixture.buffer.has_backlog());
    fixture.settle();
    let mut client = connect(&path);
    let mut text = Vec::new();
    fixture.until("all that is kept has come", |fixture| {
        read(&mut client, &mut text);
        text.len() > 60_000 && !fixture.buffer.has_backlog()
    });
    let mut rest = Vec::new();
    assert!(stuck.read_to_end(&mut rest).is_ok(), "its connection has ended");
    client.write_all(b"hello").unwrap();
    fixture.until("the guest has it", |fixture| fixture.device.got() == "hello");
}

#[test]
fn a_socket_s_client_may_send_its_words_and_listen_on() {
    let (mut fixture, path) = on_socket("half");
    let mut client = connect(&path);
    client.write_all(b"words").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    fixture.until("the guest has it", |fixture| fixture.device.got() == "words");
    fixture.settle();
    fixture.buffer.put(b"answer");
    let mut text = Vec::new();
    read(&mut client, &mut text);
    assert_eq!(text, b"answer");
    drop(client);
    fixture.settle();
    fixture.buffer.put(b"kept");
    let mut client = connect(&path);
    let mut text = Vec::new();
    fixture.until("what was kept comes", |_| {
        read(&mut client, &mut text);
        text == b"kept"
    });
}

#[test]
fn input_waits_for_a_guest_without_room_even_if_its_client_is_gone() {
    let (mut on_terminal, terminal) = on_terminal();
    let (mut on_socket, socket) = on_socket("paused");
    let all = "0123456789".repeat(200);
    for (fixture, mut client) in [
        (&mut on_terminal, Box::new(open(&terminal)) as Box<dyn Write>),
        (&mut on_socket, Box::new(connect(&socket))),
    ] {
        fixture.device.make_room(100);
        client.write_all(all.as_bytes()).unwrap();
        fixture.until("there is no more room", |fixture| fixture.device.got() == all[..100]);
        drop(client);
        // Neither spins.
        fixture.settle();
        assert_eq!(fixture.settle(), 0);
        for end in [1000, 2000] {
            let room = end - fixture.device.got().len();
            fixture.device.make_room(room);
            fixture.until("the next has come", |fixture| fixture.device.got() == all[..end]);
        }
    }
}

#[test]
fn clients_that_come_and_go_in_any_order_leave_nothing_behind() {
    let (mut fixture, path) = on_socket("random");
    let mut clients: Vec<UnixStream> = Vec::new();
    let mut random = 0x2545_f491_u32;
    for _ in 0..3000 {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        match random % 7 {
            0 if clients.len() < 3 => clients.extend(UnixStream::connect(&path)),
            1 => drop(clients.pop()),
            2 => drop(clients.first_mut().map(|client| client.write_all(b"typed"))),
            3 => fixture.device.make_room(usize::try_from(random % 8).unwrap()),
            4 => fixture.buffer.put(&[b'x'; 3000]),
            _ => drop(fixture.manager.run_with_timeout(0).unwrap()),
        }
    }
    drop(clients);
    fixture.device.make_room(1 << 20);
    fixture.settle();
    assert_eq!(fixture.settle(), 0);
    let mut client = connect(&path);
    client.write_all(b"!").unwrap();
    fixture.until("a client is heard", |fixture| fixture.device.got().ends_with('!'));
}

#[test]
fn clients_that_could_not_be_accepted_are_after_a_while() {
    let path = std::env::temp_dir().join(format!("strait-short-{}", std::process::id()));
    let socket = UnixSocket::listen("--console", &path).unwrap();
    let is_short = Arc::new(AtomicBool::new(true));
    // It is short already when the loop begins.
    let mut fixture = Fixture::new(Listener::new(Source::Short(socket, is_short.clone())).unwrap());
    for (words, heard) in [("patient", "patient"), (", and again", "patient, and again")] {
        is_short.store(true, Ordering::Relaxed);
        let mut client = connect(&path);
        client.write_all(words.as_bytes()).unwrap();
        // It waits meanwhile, and the loop doesn't spin.
        fixture.settle();
        is_short.store(false, Ordering::Relaxed);
        fixture.until("the guest has it", |fixture| fixture.device.got() == heard);
        fixture.buffer.put(b"heard");
        let mut text = Vec::new();
        read(&mut client, &mut text);
        assert_eq!(text, b"heard");
    }
    // Others come as ever.
    let _next = connect(&path);
    assert!(fixture.settle() > 0);
    assert_eq!(fixture.settle(), 0);
}
