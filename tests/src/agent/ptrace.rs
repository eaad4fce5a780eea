//! Other processes' threads, by ptrace(2).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr;

use crate::CommandError;

/// `PTRACE_GET_SYSCALL_INFO`, and what it says of a stop by a filter (linux/ptrace.h).
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const BY_FILTER: u8 = 3;

/// `svc #0`.
const SVC: u32 = 0xd400_0001;

/// What a stop of a thread is for, as waitpid(2) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It asks for a system call of which a filter says that it is to be traced.
    Call,
    /// It is about to end.
    Exit,
    /// It has made another thread or process, or is another program.
    Event,
    /// It is stopped like its whole process.
    Group,
    /// A signal is about to be delivered.
    Signal(i32),
    /// It is gone: with this status, or by this signal.
    Gone(Result<i32, i32>),
}

/// A system call that a thread asks for.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// The registers of a 64-bit Arm thread (asm/ptrace.h, `struct user_pt_regs`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The stack pointer.
    pub sp: u64,
    /// The program counter.
    pub pc: u64,
    pstate: u64,
}

/// `struct ptrace_syscall_info`, whose last part is that of a stop by a filter.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u8,
    pad: [u8; 3],
    arch: u32,
    instruction: u64,
    stack: u64,
    number: u64,
    arguments: [u64; 6],
    more: [u64; 4],
}

/// A thread that is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Thread(pub libc::pid_t);

impl Thread {
    /// Begins to trace it, with these options.
    pub fn seize(self, options: libc::c_int) -> Result<(), CommandError> {
        self.request(libc::PTRACE_SEIZE, ptr::null_mut(), options as isize as *mut libc::c_void)
    }

    /// Stops it.
    pub fn interrupt(self) -> Result<(), CommandError> {
        self.request(libc::PTRACE_INTERRUPT, ptr::null_mut(), ptr::null_mut())
    }

    /// Has it go on, with this signal if not 0.
    pub fn resume(self, signal: i32) -> Result<(), CommandError> {
        self.request(libc::PTRACE_CONT, ptr::null_mut(), signal as isize as *mut libc::c_void)
    }

    /// Leaves it stopped like its process, until that is continued.
    pub fn listen(self) -> Result<(), CommandError> {
        self.request(libc::PTRACE_LISTEN, ptr::null_mut(), ptr::null_mut())
    }

    /// The call that it asks for, if that is why it is stopped.
    pub fn call(self) -> Result<Option<Call>, CommandError> {
        let mut info = Info::default();
        let size = size_of::<Info>() as *mut libc::c_void;
        self.request(GET_SYSCALL_INFO, size, (&raw mut info).cast())?;
        let Info { kind, number, arguments, .. } = info;
        Ok((kind == BY_FILTER).then_some(Call { number, arguments }))
    }

    /// The call that ends it, if it is about to end by a filter's decision.
    pub fn killed_by_call(self) -> Result<Option<Call>, CommandError> {
        let mut status: libc::c_ulong = 0;
        self.request(libc::PTRACE_GETEVENTMSG, ptr::null_mut(), (&raw mut status).cast())?;
        // A core may have been written (bit 7).
        if status & 0x7f != libc::SIGSYS as libc::c_ulong {
            return Ok(None);
        }
        let Registers { x, pc, .. } = self.registers()?;
        // What the others of its process asked for when it ended was interrupted, which is an error, or
        // they were in no system call.
        let is_error = (1..4096).contains(&x[0].wrapping_neg());
        if is_error || self.instruction(pc - 4) != Some(SVC) {
            return Ok(None);
        }
        Ok(Some(Call { number: x[8], arguments: [x[0], x[1], x[2], x[3], x[4], x[5]] }))
    }

    /// Its registers.
    pub fn registers(self) -> Result<Registers, CommandError> {
        let mut registers = Registers::default();
        let mut vector =
            libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size_of::<Registers>() };
        let set = libc::NT_PRSTATUS as isize as *mut libc::c_void;
        self.request(libc::PTRACE_GETREGSET, set, (&raw mut vector).cast())?;
        Ok(registers)
    }

    /// Has it ask for a system call, with what `change` makes of its registers, by the instruction by
    /// which it asked for the one that it is stopped in.
    pub fn call_again(self, change: impl FnOnce(&mut Registers)) -> Result<(), CommandError> {
        let mut registers = self.registers()?;
        // It is behind the instruction, or before it if the call was to be made once more.
        let places = [registers.pc, registers.pc - 4];
        let place = places.into_iter().find(|pc| self.instruction(*pc) == Some(SVC));
        registers.pc = place.ok_or("it is in no system call")?;
        change(&mut registers);
        self.set_registers(registers)
    }

    /// Gives it other registers.
    pub fn set_registers(self, mut registers: Registers) -> Result<(), CommandError> {
        let mut vector =
            libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size_of::<Registers>() };
        let set = libc::NT_PRSTATUS as isize as *mut libc::c_void;
        self.request(libc::PTRACE_SETREGSET, set, (&raw mut vector).cast())
    }

    /// Writes to its memory.
    pub fn write(self, bytes: &[u8], address: u64) -> Result<(), CommandError> {
        let memory = File::options().write(true).open(format!("/proc/{}/mem", self.0))?;
        Ok(memory.write_all_at(bytes, address)?)
    }

    fn instruction(self, address: u64) -> Option<u32> {
        let memory = File::open(format!("/proc/{}/mem", self.0)).ok()?;
        let mut bytes = [0; 4];
        memory.read_exact_at(&mut bytes, address).ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    /// What it is called.
    pub fn name(self) -> String {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.0)).unwrap_or_default();
        name.trim_end().to_owned()
    }

    /// What its process is called.
    pub fn process_name(self) -> Option<String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
        Some(Thread(process.trim().parse().ok()?).name())
    }

    fn request(
        self,
        request: libc::c_uint,
        address: *mut libc::c_void,
        data: *mut libc::c_void,
    ) -> Result<(), CommandError> {
        // SAFETY: the callers' addresses are of what the request reads and fills, or no addresses.
        let result = unsafe { libc::ptrace(request as _, self.0, address, data) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return Err(format!("ptrace {request:#x} of {}: {error}", self.0).into());
        }
        Ok(())
    }
}

/// Waits until a thread that is traced is stopped; `None` if there is none any more.
pub fn wait() -> Result<Option<(Thread, Stop)>, CommandError> {
    let mut status = 0;
    // SAFETY: the status is an int.
    let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
    if thread < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ECHILD) => Ok(None),
            _ => Err(format!("waitpid: {error}").into()),
        };
    }
    let event = status >> 16;
    let stop = if libc::WIFEXITED(status) {
        Stop::Gone(Ok(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Stop::Gone(Err(libc::WTERMSIG(status)))
    } else {
        match (event, libc::WSTOPSIG(status)) {
            (0, signal) => Stop::Signal(signal),
            (libc::PTRACE_EVENT_SECCOMP, _) => Stop::Call,
            // Or a new thread's first stop, or that of an interruption: both by SIGTRAP.
            (libc::PTRACE_EVENT_EXIT, _) => Stop::Exit,
            (libc::PTRACE_EVENT_STOP, signal) if signal != libc::SIGTRAP => Stop::Group,
            _ => Stop::Event,
        }
    };
    Ok(Some((Thread(thread), stop)))
}
