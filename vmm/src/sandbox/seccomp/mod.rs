//! Filters of system calls (the kernel's Documentation/userspace-api/seccomp_filter.rst).
//!
//! Each kind of thread has its own, in `vmm/seccomp/*.filter`, with a reason for each call. They become
//! programs when strait is built, so that all that is done here is to hand one to the kernel.
//!
//! `SECCOMP_FILTER_FLAG_SPEC_ALLOW` isn't used. Since Linux 5.16 a filter slows nothing down by itself
//! any more, and before, what it switches on protects what a guest could read by speculation.

mod programs;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use devices::thread_kind::{self, ThreadKind};

use crate::cli::SandboxMode;
use crate::error::Error;

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs a vCPU.
    Vcpu,
    /// Has the event loop: the main thread.
    EventLoop,
    /// Writes a console's output, or a trace, to a file.
    ConsoleFile,
    /// Serves a debugger.
    Gdb,
    /// Works for a device.
    Device(ThreadKind),
}

/// What becomes of a call that isn't allowed; none are filtered yet.
static ACTION: AtomicU8 = AtomicU8::new(NOTHING);
const NOTHING: u8 = 0;
const LOG: u8 = 1;
const KILL: u8 = 2;

/// The guest has devices other than the platform's own, or may begin anew.
static HAS_DEVICES: AtomicBool = AtomicBool::new(true);

/// `BPF_RET | BPF_K` with `SECCOMP_RET_KILL_PROCESS`, and with `SECCOMP_RET_LOG`, as instructions of
/// the programs (linux/bpf_common.h, linux/seccomp.h).
const RETURN_KILL: u64 = 0x8000_0000_0000_0006;
const RETURN_LOG: u64 = 0x7ffc_0000_0000_0006;

/// Has each thread filter its calls from here on, once it [enters](Kind::enter). A guest without other
/// `devices` than the platform's own, that can't begin anew either, has its threads ask for less.
///
/// # Errors
///
/// The kernel has no filters.
pub fn enable(mode: SandboxMode, devices: bool) -> io::Result<()> {
    let action = match mode {
        SandboxMode::Off => return Ok(()),
        SandboxMode::Log => LOG,
        SandboxMode::On => KILL,
    };
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the operation reads 32 bits (seccomp(2)).
    let known = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const kill)
    };
    if known != 0 {
        return Err(io::Error::last_os_error());
    }
    HAS_DEVICES.store(devices, Ordering::Release);
    ACTION.store(action, Ordering::Release);
    thread_kind::set_entry(|kind| Kind::Device(kind).enter());
    Ok(())
}

impl Kind {
    /// Filters the calls of this thread from here on, if filters are [enabled](enable). A thread of
    /// which the kernel says that it can't be filtered ends the process, before it serves anything.
    pub fn enter(self) {
        let devices = HAS_DEVICES.load(Ordering::Acquire);
        let entered = match ACTION.load(Ordering::Acquire) {
            NOTHING => return,
            LOG => {
                let logs = |word: &u64| if *word == RETURN_KILL { RETURN_LOG } else { *word };
                install(&self.program(devices).iter().map(logs).collect::<Vec<_>>())
            }
            _ => install(self.program(devices)),
        };
        if let Err(error) = entered {
            let why = format!("the sandbox: a thread can't filter its system calls: {error}");
            log::error!("{}", Error::new(why).log_text());
            // Other vCPUs may run already: by a signal a supervisor knows that devices are to be stopped.
            std::process::abort();
        }
    }

    fn program(self, devices: bool) -> &'static [u64] {
        match self {
            Self::Vcpu if !devices => &programs::VCPU_PLAIN,
            Self::EventLoop if !devices => &programs::EVENT_LOOP_PLAIN,
            Self::Vcpu => &programs::VCPU,
            Self::EventLoop => &programs::EVENT_LOOP,
            Self::ConsoleFile => &programs::CONSOLE_FILE,
            Self::Gdb => &programs::GDB,
            Self::Device(ThreadKind::Block) => &programs::BLOCK,
            Self::Device(ThreadKind::Net) => &programs::NET,
            Self::Device(ThreadKind::Console) => &programs::CONSOLE,
            Self::Device(ThreadKind::Entropy) => &programs::ENTROPY,
            Self::Device(ThreadKind::Balloon) => &programs::BALLOON,
            Self::Device(ThreadKind::Vhost) => &programs::VHOST,
            Self::Device(ThreadKind::Intx) => &programs::INTX,
            Self::Device(ThreadKind::Flash) => &programs::FLASH,
            Self::Device(ThreadKind::VfioUser) => &programs::VFIO_USER,
            Self::Device(ThreadKind::VhostUser) => &programs::VHOST_USER,
        }
    }
}

/// Has the kernel filter this thread's calls by a program.
fn install(program: &[u64]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // A thread that was made before the process gave its privileges up has to do so, too.
    // SAFETY: no pointer is taken.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel reads `len` instructions of 8 bytes, which the words are on a little-endian
    // machine; it checks all of them.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
