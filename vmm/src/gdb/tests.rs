//! Sessions of debuggers with vCPUs that are only registers.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use arch::debug::{DebuggedCpu, Register, Stop};

use super::gate::Passage;
use super::session::End;
use super::testing::{self, Session};

/// A debugger.
struct Gdb(BufReader<UnixStream>);

impl Gdb {
    fn begin() -> (Session, Self) {
        let (session, stream) = Session::begin().unwrap();
        let mut gdb = Self(BufReader::new(stream));
        assert_eq!(gdb.ask("QStartNoAckMode"), "OK");
        (session, gdb)
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0, u8::wrapping_add);
        write!(self.0.get_mut(), "${packet}#{sum:02x}").unwrap();
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.answer()
    }

    /// The next packet as it is.
    fn answer(&mut self) -> String {
        let (mut packet, mut sum) = (Vec::new(), [0; 2]);
        self.0.read_until(b'$', &mut packet).unwrap();
        packet.clear();
        self.0.read_until(b'#', &mut packet).unwrap();
        self.0.read_exact(&mut sum).unwrap();
        packet.pop();
        String::from_utf8(packet).unwrap()
    }
}

#[test]
fn a_debugger_leaves_nothing_behind_however_it_goes() {
    for detaches in [true, false] {
        let (session, mut gdb) = Gdb::begin();
        assert_eq!(gdb.ask("M40000100,4:11223344"), "OK");
        for point in ["Z0,40000100,4", "Z1,40000200,4", "Z2,40000300,4"] {
            assert_eq!(gdb.ask(point), "OK");
        }
        // What is beneath a breakpoint is read and written.
        assert_eq!(gdb.ask("m40000102,4"), "33440* ");
        assert_eq!(gdb.ask("M40000102,2:5566"), "OK");
        assert_eq!(gdb.ask("m40000100,4"), "11225566");
        if detaches {
            assert_eq!(gdb.ask("D"), "OK");
        }
        drop(gdb);
        let (end, ram) = session.end();
        assert_eq!(matches!(end, Ok(End::Detached)), detaches);
        assert_eq!(ram[0x100..0x104], [0x11, 0x22, 0x55, 0x66]);
    }
}

#[test]
fn what_it_can_t_have_is_an_error_and_no_end() {
    let (session, mut gdb) = Gdb::begin();
    for (packet, answer) in [
        ("m3fffff00,4", "E0e"),
        ("Mffffffffffffffff,1:00", "E0e"),
        ("Z0,50000000,4", "E0e"),
        ("Z0,40000002,4", "E0e"),
        ("z0,40000000,4", "E16"),
        ("Z1,40000001,4", "E16"),
        ("Z2,40000004,8", "E16"),
        ("P21=00000000000000000000000000000000000000", "E79"),
        ("Hg9", "OK"),
        ("g", "E16"),
        ("Hg1", "OK"),
        ("vCont;c:1;s:2", ""),
    ] {
        if answer.is_empty() {
            // Both begin, and one is told.
            assert!(gdb.ask(packet).starts_with("T05thread:02"));
        } else {
            assert_eq!(gdb.ask(packet), answer, "{packet}");
        }
    }
    // As many as the hardware has.
    let points: Vec<_> =
        (0..7).map(|n| gdb.ask(&format!("Z1,{:x},4", 0x4000_0000 + n * 4))).collect();
    assert_eq!(points, ["OK", "OK", "OK", "OK", "OK", "OK", "E05"]);
    gdb.send("k");
    assert!(matches!(session.end().0, Ok(End::Killed)));
}

#[test]
fn a_running_guest_is_interrupted_and_not_touched_before() {
    let (session, mut gdb) = Gdb::begin();
    gdb.send("vCont;c");
    for packet in ["g", "m40000000,4", "Z1,40000000,4"] {
        assert_eq!(gdb.ask(packet), "E10", "{packet}");
    }
    // Twice is once.
    gdb.send("vCont;c");
    gdb.0.get_mut().write_all(&[3, 3]).unwrap();
    assert_eq!(gdb.answer(), "T02thread:01;");
    assert_eq!(gdb.ask("Z0,40000100,4"), "OK");
    // At no breakpoint of the debugger's: the guest's own.
    gdb.send("vCont;c");
    gdb.0.get_mut().write_all(&[3]).unwrap();
    assert_eq!(gdb.answer(), "T02thread:01;");
    assert_eq!(gdb.ask("D"), "OK");
    assert!(matches!(session.end().0, Ok(End::Detached)));
}

#[test]
fn a_reset_undoes_what_a_vcpu_had_stopped_for() {
    let (gate, cpus, mut guest) = testing::guest().unwrap();
    let cpu = &cpus[0];
    let stops = || {
        let gate = gate.clone();
        std::thread::spawn(move || gate.pass(0, Some(Stop::Brk { syndrome: 0xf200_0000 })))
    };
    // The guest's own, which it would find itself behind.
    let stopped = stops();
    while gate.event().read().is_err() {}
    drop(gate.note_reset());
    assert!(guest.next_stop().unwrap().is_none());
    assert_eq!(cpu.read(Register::ESR_EL1).unwrap(), 0, "the new life has the old one's exception");
    assert_eq!(stopped.join().unwrap(), Passage::Open);
    // What it does afterwards isn't forgotten.
    let stopped = stops();
    while gate.event().read().is_err() {}
    assert!(guest.next_stop().unwrap().is_none());
    assert_eq!(cpu.read(Register::ESR_EL1).unwrap(), 0xf200_0000);
    assert_eq!(stopped.join().unwrap(), Passage::Open);
}
