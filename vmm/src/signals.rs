//! Signals: those that end strait, as a descriptor; and the one that interrupts vCPUs.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Signals that end the run cleanly.
const ENDING: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End the run; the signal's number.
    End(u8),
    /// Write the statistics now.
    Stats,
    /// The process was continued after a stop, perhaps with another terminal state.
    Continued,
}

/// The signals strait waits for, as a descriptor (signalfd).
#[derive(Debug)]
pub struct Signals(File);

impl Signals {
    /// Blocks the signals in this thread, and so in all it starts, and opens the descriptor.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset fills the set, sigaddset is given it and valid signal numbers,
        // pthread_sigmask reads it.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in ENDING.into_iter().chain([libc::SIGUSR1, libc::SIGCONT]) {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just made this descriptor for us; nobody else owns it.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The next request, if one has arrived.
    pub fn next(&mut self) -> Option<Request> {
        // struct signalfd_siginfo begins with the signal's number, a u32 (signalfd(2)).
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info).ok()?;
        let number = i32::from_le_bytes(*info.first_chunk()?);
        match number {
            libc::SIGUSR1 => Some(Request::Stats),
            libc::SIGCONT => Some(Request::Continued),
            _ => Some(Request::End(u8::try_from(number).unwrap_or(0))),
        }
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The signal that interrupts a vCPU thread.
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Gives the kick signal a handler that does nothing: it is to interrupt system calls.
///
/// # Errors
///
/// The handler can't be installed.
pub fn accept_kicks() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), nothing)
        .map_err(|e| io::Error::from_raw_os_error(e.errno()))
}
