use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::tempdir::TempDir;

use super::*;

/// A control without a socket, and a way to turn its wheel.
struct Server {
    control: Control,
    _directory: TempDir,
    _acceptor: Acceptor,
}

impl Server {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let (acceptor, accepted) = listen(&directory.as_path().join("control")).unwrap();
        Self { control: Control::new(accepted), _directory: directory, _acceptor: acceptor }
    }

    fn client(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        self.control.admit(File::from(OwnedFd::from(ours)));
        theirs
    }

    /// Serves all clients until nothing is left to be done; the requests.
    fn serve(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        for _ in 0..100 {
            requests.extend(self.turn());
        }
        requests
    }

    /// Serves each client once; the requests.
    fn turn(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        for number in (1..).take(MAX_CLIENTS) {
            let client = self.control.clients[usize::try_from(number).unwrap() - 1].as_ref();
            let Some(wanted) = client.map(Client::wanted) else { continue };
            if let Some(pending) = self.control.serve(number, wanted) {
                requests.push(pending.request);
                self.control.answer(&pending, Answer::Done);
            }
        }
        requests
    }

    fn is_gone(&self, client: usize) -> bool {
        self.control.clients[client].as_ref().unwrap().is_gone()
    }
}

fn call(method: &str) -> Vec<u8> {
    format!(r#"{{"method":"io.systemd.MachineInstance.{method}"}}"#).into_bytes()
}

fn read(client: &mut UnixStream) -> String {
    let mut bytes = vec![0; 1 << 20];
    let count = client.read(&mut bytes).unwrap_or_default();
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

#[test]
fn messages_are_whole_in_whatever_pieces_they_come() {
    let mut server = Server::new();
    let (mut one, mut other) = (server.client(), server.client());
    let message = [call("Pause"), vec![0], call("Resume"), vec![0]].concat();
    for byte in &message[..message.len() - 1] {
        one.write_all(&[*byte]).unwrap();
        if *byte == 0 {
            assert_eq!(server.serve(), [Request::Pause]);
        }
    }
    other.write_all(&call("QueryStatus")).unwrap();
    assert_eq!(server.serve(), []);
    one.write_all(&[0]).unwrap();
    assert_eq!(server.serve(), [Request::Resume]);
    other.write_all(&[0]).unwrap();
    assert_eq!(server.serve(), [Request::Status]);
    assert_eq!(read(&mut one), "{\"parameters\":{}}\0".repeat(2));
    assert_eq!(read(&mut other), "{\"parameters\":{}}\0");
}

#[test]
fn who_sends_nonsense_or_too_much_is_turned_away() {
    for bytes in [b"x\0".to_vec(), vec![b' '; 100_000], vec![0]] {
        let mut server = Server::new();
        let mut client = server.client();
        let mut rest = bytes.as_slice();
        for _ in 0..100 {
            rest = &rest[client.write(rest).unwrap_or_default()..];
            assert_eq!(server.serve(), []);
        }
        assert!(server.is_gone(0));
    }
}

#[test]
fn who_reads_nothing_is_not_waited_for() {
    let mut server = Server::new();
    let (mut silent, mut other) = (server.client(), server.client());
    let subscribe = br#"{"method":"io.systemd.MachineInstance.SubscribeEvents","more":true}"#;
    silent.write_all(subscribe).unwrap();
    silent.write_all(&[0]).unwrap();
    server.serve();
    for _ in 0..100_000 {
        server.control.tell(event::STOP);
    }
    assert!(server.is_gone(0));
    other.write_all(&[call("Pause"), vec![0]].concat()).unwrap();
    assert_eq!(server.serve(), [Request::Pause]);
}

#[test]
fn events_go_to_those_who_asked_for_them() {
    let mut server = Server::new();
    let (mut all, mut some, mut none) = (server.client(), server.client(), server.client());
    let subscribe = |client: &mut UnixStream, parameters: &str| {
        let method = "io.systemd.MachineInstance.SubscribeEvents";
        let call = format!(r#"{{"method":"{method}","more":true{parameters}}}"#);
        client.write_all(&[call.as_bytes(), &[0]].concat()).unwrap();
    };
    subscribe(&mut all, "");
    subscribe(&mut some, r#","parameters":{"filter":["STOP"]}"#);
    server.serve();
    server.control.tell(event::STOP);
    server.control.tell(event::RESUME);
    let of = |text: String| ["READY", "STOP", "RESUME"].map(|name| text.contains(name));
    assert_eq!(of(read(&mut all)), [true; 3]);
    assert_eq!(of(read(&mut some)), [true, true, false]);
    assert_eq!(of(read(&mut none)), [false; 3]);
}

#[test]
fn there_are_only_so_many_clients() {
    let mut server = Server::new();
    let _clients: Vec<_> = (0..MAX_CLIENTS).map(|_| server.client()).collect();
    let mut late = server.client();
    assert_eq!(late.read(&mut [0]).unwrap(), 0);
}

#[test]
fn one_that_sends_much_at_once_is_served_in_turn_with_others() {
    let mut server = Server::new();
    let (mut flood, mut other) = (server.client(), server.client());
    let message = |method, rest: &str| {
        format!("{{\"method\":\"io.systemd.MachineInstance.{method}\"{rest}}}\0").into_bytes()
    };
    flood.write_all(&message("Reboot", ",\"oneway\":true").repeat(1300)).unwrap();
    other.write_all(&[message("Pause", ""), message("Resume", "")].concat()).unwrap();
    assert_eq!(server.turn(), [Request::Reboot, Request::Pause]);
    assert_eq!(server.turn(), [Request::Reboot, Request::Resume]);
    assert_eq!(server.turn(), [Request::Reboot]);
    // One that goes has what it had asked for, and nothing is kept of it then.
    drop(flood);
    let mut rest = 0;
    while !server.is_gone(0) {
        let wanted = server.control.clients[0].as_ref().unwrap().wanted();
        rest += usize::from(server.control.serve(1, wanted | EventSet::HANG_UP).is_some());
        assert!(rest < 1300);
    }
    assert_eq!(rest, 1300 - 3);
    // What isn't for the machine waits for its turn, too.
    other.write_all(&message("None", "").repeat(3)).unwrap();
    for _ in 0..3 {
        assert_eq!(server.turn(), []);
        assert_eq!(read(&mut other).matches("MethodNotFound").count(), 1);
    }
}
