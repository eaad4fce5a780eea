//! Signals: those that end strait, as a descriptor; and the one that interrupts vCPUs.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmm_sys_util::signal::{SIGRTMAX, SIGRTMIN, create_sigset, register_signal_handler};

/// Signals that end the run in order: all that would end the process (signal(7)) but SIGKILL, those
/// of faults, which a process must not block, and the kick. With them go the [real-time
/// ones](real_time).
const TERMINATING: [libc::c_int; 13] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
];

/// The real-time signals but the kick.
fn real_time() -> impl Iterator<Item = libc::c_int> {
    kick_signal() + 1..=SIGRTMAX()
}

fn terminating() -> impl Iterator<Item = libc::c_int> {
    TERMINATING.into_iter().chain(real_time())
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End the run; the signal's number.
    End(u8),
    /// Write the statistics now.
    Stats,
    /// The process was continued after a stop, perhaps with another terminal state.
    Continued,
    /// The terminal may have another size.
    Resized,
}

/// A signal that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its number.
    pub number: libc::c_int,
    /// No process has sent it, but the kernel: for a terminal, to all of a process group.
    pub by_kernel: bool,
}

/// Why the kernel sends a signal by itself (asm-generic/siginfo.h).
const SI_KERNEL: libc::c_int = 0x80;

/// The signals strait waits for, as a descriptor (signalfd).
#[derive(Debug)]
pub struct Signals(File);

impl Signals {
    /// Blocks the signals in this thread, and so in all it starts, and opens the descriptor.
    ///
    /// SIGTTIN is blocked with them: reading a terminal that is another job's is an error (EIO) then
    /// and stops nothing. A stopped process gets no blocked signal, not even one that ends it.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        accept_kicks()?;
        devices::stop::set_source(is_end_pending);
        let requests: Vec<_> =
            terminating().chain([libc::SIGUSR1, libc::SIGCONT, libc::SIGWINCH]).collect();
        let blocked: Vec<_> = requests.iter().copied().chain([libc::SIGTTIN]).collect();
        let (requests, blocked) = (create_sigset(&requests)?, create_sigset(&blocked)?);
        // SAFETY: each call reads a set.
        let fd = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut());
            libc::signalfd(-1, &raw const requests, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just made this descriptor for us; nobody else owns it.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The next signal, if one has arrived, for who hands it on.
    pub fn next_signal(&mut self) -> Option<Arrived> {
        loop {
            // struct signalfd_siginfo begins with the signal's number, a u32; who sent it is the
            // fourth such word (signalfd(2)).
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            self.0.read_exact(&mut info).ok()?;
            let number = i32::from_le_bytes(*info.first_chunk()?);
            let sender = info.get(12..).and_then(|rest| rest.first_chunk());
            let ours = sender.is_some_and(|pid| u32::from_le_bytes(*pid) == std::process::id());
            // A write of ours beyond RLIMIT_FSIZE has failed by that.
            if number == libc::SIGXFSZ && ours {
                continue;
            }
            // Why it was sent is the third.
            let code = info.get(8..).and_then(|rest| rest.first_chunk());
            let by_kernel = code.is_some_and(|code| i32::from_le_bytes(*code) == SI_KERNEL);
            return Some(Arrived { number, by_kernel });
        }
    }

    /// The next request, if one has arrived.
    pub fn next(&mut self) -> Option<Request> {
        let Arrived { number, .. } = self.next_signal()?;
        Some(match number {
            libc::SIGUSR1 => Request::Stats,
            libc::SIGCONT => Request::Continued,
            libc::SIGWINCH => Request::Resized,
            _ => Request::End(u8::try_from(number).unwrap_or(0)),
        })
    }

    /// The signal that asks for the end, if one has arrived. What else was asked for is forgotten.
    pub fn end(&mut self) -> Option<u8> {
        while let Some(request) = self.next() {
            if let Request::End(number) = request {
                return Some(number);
            }
        }
        None
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Whether a signal that ends strait is pending. Without [`Signals`] none
/// ever does: they end the process by themselves.
pub fn is_end_pending() -> bool {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigpending fills the set, or fails, and sigismember is given a filled one.
    unsafe {
        libc::sigpending(set.as_mut_ptr()) == 0
            && terminating().any(|signal| libc::sigismember(set.as_ptr(), signal) == 1)
    }
}

/// The signal that interrupts a vCPU thread.
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Gives the kick signal a handler that does nothing: it is to interrupt system calls.
fn accept_kicks() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), nothing)
        .map_err(|e| io::Error::from_raw_os_error(e.errno()))
}
