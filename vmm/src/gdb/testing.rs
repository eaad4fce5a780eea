//! A guest of vCPUs that are only registers, whose threads come to the gate and stop at each step.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use arch::debug::{Control, DebuggedCpu, Register, Stop};
use devices::sync::lock;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::client::Client;
use super::gate::{Gate, Passage};
use super::guest::Guest;
use super::session::{self, End};

/// Where RAM is (GPA), and its size in bytes.
pub(super) const RAM: (u64, usize) = (0x4000_0000, 0x1_0000);

/// Registers, and what the vCPU stops at.
#[derive(Default)]
struct State {
    registers: HashMap<u32, u128>,
    control: Control,
    interrupted: bool,
}

/// A vCPU that is only registers.
#[derive(Clone, Default)]
pub(super) struct Cpu(Arc<Mutex<State>>);

fn key(register: Register) -> u32 {
    match register {
        Register::X(n) => n.into(),
        Register::Sp => 31,
        Register::Pc => 32,
        Register::Pstate => 33,
        Register::V(n) => 34 + u32::from(n),
        Register::Fpsr => 66,
        Register::Fpcr => 67,
        Register::System(encoding) => encoding.into(),
    }
}

impl DebuggedCpu for Cpu {
    fn read(&self, register: Register) -> io::Result<u128> {
        Ok(lock(&self.0).registers.get(&key(register)).copied().unwrap_or_default())
    }

    fn write(&self, register: Register, value: u128) -> io::Result<()> {
        lock(&self.0).registers.insert(key(register), value);
        Ok(())
    }

    fn control(&self, control: &Control) -> io::Result<()> {
        if control.breakpoints.len() > 6 || control.watchpoints.len() > 4 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        lock(&self.0).control = control.clone();
        Ok(())
    }

    fn interrupt(&self) {
        lock(&self.0).interrupted = true;
    }

    fn proceed(&self) {
        lock(&self.0).interrupted = false;
    }
}

impl Cpu {
    /// Why it stops, if it does: of what it is to stop at, one after the other.
    fn run(&self) -> Option<Stop> {
        let mut state = lock(&self.0);
        let pc = state.registers.entry(32).or_insert(u128::from(RAM.0));
        *pc = pc.wrapping_add(4) & u128::from(u64::MAX);
        match &state.control {
            _ if state.interrupted => None,
            control if control.single_step => Some(Stop::Step),
            control if control.brk => Some(Stop::Brk { syndrome: 0xf200_0000 }),
            control if !control.breakpoints.is_empty() => Some(Stop::Breakpoint),
            control => control.watchpoints.first().map(|point| Stop::Watchpoint(point.address)),
        }
    }
}

/// A guest of two vCPUs, which come to its gate, open at first.
///
/// # Errors
///
/// The host has no more memory or descriptors.
pub(super) fn guest() -> io::Result<(Arc<Gate>, Vec<Cpu>, Guest)> {
    let gate = Arc::new(Gate::new(2, true)?);
    let cpus = vec![Cpu::default(), Cpu::default()];
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM.0), RAM.1)]);
    let memory = memory.map_err(io::Error::other)?;
    let debugged = cpus.iter().map(|cpu| Box::new(cpu.clone()) as Box<dyn DebuggedCpu>);
    let info = Box::new(|topic| format!("{topic:?}\n"));
    let guest = Guest::new(debugged.collect(), memory, gate.clone(), info);
    Ok((gate, cpus, guest))
}

/// Two vCPUs, and a debugger's session with them.
pub struct Session {
    gate: Arc<Gate>,
    cpus: Vec<Cpu>,
    vcpus: Vec<JoinHandle<()>>,
    session: JoinHandle<(Result<End, String>, Vec<u8>)>,
}

impl Session {
    /// Begins one, of which the debugger has the other end.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub fn begin() -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (gate, cpus, mut guest) = guest()?;
        let memory = guest.memory().clone();
        let vcpus = cpus.iter().enumerate().map(|(index, cpu)| {
            let (gate, cpu) = (gate.clone(), cpu.clone());
            thread::spawn(move || {
                while gate.pass(index, cpu.run()) == Passage::Open {
                    thread::yield_now();
                }
            })
        });
        let vcpus = vcpus.collect();
        let client = Client::new(OwnedFd::from(ours).into(), gate.clone());
        let session = thread::spawn(move || {
            let end = session::run(&mut guest, client);
            let released = guest.release().map_err(|e| e.to_string());
            let mut ram = vec![0; RAM.1];
            let read = vm_memory::Bytes::read_slice(&memory, &mut ram, GuestAddress(RAM.0));
            (released.and(read.map_err(|e| e.to_string())).and(end), ram)
        });
        Ok((Self { gate, cpus, vcpus, session }, theirs))
    }

    /// Waits for the session's end, and ends the run: how it ended, and RAM.
    ///
    /// # Panics
    ///
    /// Something is left of the debugger, or a thread has panicked.
    pub fn end(self) -> (Result<End, String>, Vec<u8>) {
        let ended = self.session.join();
        for cpu in &self.cpus {
            assert_eq!(lock(&cpu.0).control, Control::default(), "the vCPU stops somewhere");
        }
        self.gate.end(0);
        let vcpus = self.vcpus.into_iter().all(|vcpu| vcpu.join().is_ok());
        assert!(vcpus, "a vCPU's thread has panicked");
        ended.unwrap_or_else(|_| (Err("the session has panicked".into()), Vec::new()))
    }
}
