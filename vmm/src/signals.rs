//! Signals: those that end strait, as a descriptor; and the one that interrupts vCPUs.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use devices::sync;
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

/// Those of them that end this process: bit N - 1 for signal N. What was ignored when strait was started
/// stays ignored, as with nohup(1), or SIGINT in a shell's background job.
static HEEDED: AtomicU64 = AtomicU64::new(0);

/// A signal's bit in such a set.
fn bit(signal: libc::c_int) -> u64 {
    u32::try_from(signal - 1).ok().and_then(|shift| 1_u64.checked_shl(shift)).unwrap_or(0)
}

/// The end that a process with a supervisor was asked for last.
static ASKED: Mutex<Option<Asked>> = Mutex::new(None);

/// A signal, whether the supervisor has handed it on, and when.
#[derive(Clone, Copy)]
struct Asked {
    signal: libc::c_int,
    by_supervisor: bool,
    at: Instant,
}

/// How long after that the same signal by the other way is taken for the same one: what is sent to a process
/// group, or to all of a service, comes to both, and the supervisor hands it on.
const ECHO_TIME: Duration = Duration::from_secs(1);

impl Asked {
    fn is_recent(self, signal: libc::c_int) -> bool {
        self.signal == signal && self.at.elapsed() < ECHO_TIME
    }
}

/// Notes a signal that came this way; answers whether it has come by the other one, too.
fn note(signal: libc::c_int, by_supervisor: bool) -> bool {
    let mut asked = sync::lock(&ASKED);
    let before = asked.filter(|asked| asked.is_recent(signal));
    if before.is_some_and(|before| before.by_supervisor != by_supervisor) {
        return true;
    }
    *asked = Some(Asked { signal, by_supervisor, at: Instant::now() });
    false
}

/// Does something that no signal cuts short.
pub fn unheeded<T>(work: impl FnOnce() -> T) -> T {
    let heeded = HEEDED.swap(0, Ordering::Relaxed);
    let done = work();
    HEEDED.store(heeded, Ordering::Relaxed);
    done
}

/// Whether whoever has started strait has it ignore this signal.
fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: sigaction fills the structure, or leaves it zeroed, which is valid, too.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
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
    /// Which process has sent it.
    sender: u32,
    /// No process has sent it, but the kernel: for a terminal, to all of a process group.
    pub by_kernel: bool,
}

/// Why the kernel sends a signal by itself (asm-generic/siginfo.h).
const SI_KERNEL: libc::c_int = 0x80;

/// The signals strait waits for, as a descriptor (signalfd).
#[derive(Debug)]
pub struct Signals {
    file: File,
    /// The process that hands on the signals that it gets.
    supervisor: Option<u32>,
}

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
        let heeded = TERMINATING.into_iter().filter(|signal| !is_ignored(*signal));
        let terminating: Vec<_> = heeded.chain(real_time()).collect();
        let bits = terminating.iter().fold(0, |bits, signal| bits | bit(*signal));
        HEEDED.store(bits, Ordering::Relaxed);
        devices::stop::set_source(is_end_pending);
        let requests: Vec<_> =
            terminating.into_iter().chain([libc::SIGUSR1, libc::SIGCONT, libc::SIGWINCH]).collect();
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
        Ok(Self { file: unsafe { File::from_raw_fd(fd) }, supervisor: None })
    }

    /// Has this process know its supervisor, a process that hands on the signals that it gets.
    pub fn supervised_by(&mut self, pid: u32) {
        self.supervisor = Some(pid);
    }

    /// The next signal, if one has arrived, for who hands it on.
    pub fn next_signal(&mut self) -> Option<Arrived> {
        loop {
            // struct signalfd_siginfo begins with the signal's number, a u32; who sent it is the
            // fourth such word (signalfd(2)).
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            self.file.read_exact(&mut info).ok()?;
            let number = i32::from_le_bytes(*info.first_chunk()?);
            let sender = u32::from_le_bytes(*info.get(12..)?.first_chunk()?);
            // A write of ours beyond RLIMIT_FSIZE has failed by that.
            if number == libc::SIGXFSZ && sender == std::process::id() {
                continue;
            }
            // Why it was sent is the third.
            let code = info.get(8..).and_then(|rest| rest.first_chunk());
            let by_kernel = code.is_some_and(|code| i32::from_le_bytes(*code) == SI_KERNEL);
            return Some(Arrived { number, sender, by_kernel });
        }
    }

    /// The next request, if one has arrived.
    pub fn next(&mut self) -> Option<Request> {
        loop {
            let Arrived { number, sender, .. } = self.next_signal()?;
            return Some(match number {
                libc::SIGUSR1 => Request::Stats,
                libc::SIGCONT => Request::Continued,
                libc::SIGWINCH => Request::Resized,
                _ if self.supervisor.is_some_and(|pid| note(number, pid == sender)) => continue,
                _ => Request::End(u8::try_from(number).unwrap_or(0)),
            });
        }
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
        self.file.as_raw_fd()
    }
}

/// Whether a signal that ends strait is pending. Without [`Signals`] none
/// ever does: they end the process by themselves.
pub fn is_end_pending() -> bool {
    let heeded = HEEDED.load(Ordering::Relaxed);
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigpending fills the set, or fails.
    if unsafe { libc::sigpending(set.as_mut_ptr()) } != 0 {
        return false;
    }
    let is_pending = |signal: &libc::c_int| {
        // SAFETY: the set is filled.
        heeded & bit(*signal) != 0 && unsafe { libc::sigismember(set.as_ptr(), *signal) == 1 }
    };
    // Which way it has come isn't known before it is taken.
    let asked = *sync::lock(&ASKED);
    let is_echo = |signal| asked.is_some_and(|asked| asked.is_recent(signal));
    TERMINATING.into_iter().chain(real_time()).any(|signal| is_pending(&signal) && !is_echo(signal))
}

/// The signal that interrupts a vCPU thread.
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Gives the kick signal a handler that does nothing: it is to interrupt system calls. Whoever has started
/// strait may have blocked it, and threads inherit that.
fn accept_kicks() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let kick = create_sigset(&[kick_signal()])?;
    // SAFETY: reads a set.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const kick, std::ptr::null_mut()) };
    register_signal_handler(kick_signal(), nothing)
        .map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    const SUPERVISOR: u32 = 99;

    /// Signals that have come from these processes.
    fn arrived(signals: &[(libc::c_int, u32)]) -> Signals {
        let mut file = TempFile::new().unwrap().into_file();
        for (number, sender) in signals {
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            info[..4].copy_from_slice(&number.to_le_bytes());
            info[12..16].copy_from_slice(&sender.to_le_bytes());
            file.write_all(&info).unwrap();
        }
        file.rewind().unwrap();
        Signals { file, supervisor: None }
    }

    #[test]
    fn what_comes_here_and_to_the_supervisor_is_one_signal() {
        let (term, int) = (libc::SIGTERM, libc::SIGINT);
        let of = |number| Some(Request::End(u8::try_from(number).unwrap()));
        let one = [(term, SUPERVISOR), (term, 7), (int, 7), (int, SUPERVISOR), (term, SUPERVISOR)];
        let all = [&one[..], &[(term, SUPERVISOR), (term, 7), (int, SUPERVISOR)]].concat();
        let mut signals = arrived(&all);
        signals.supervised_by(SUPERVISOR);
        let seen: Vec<_> = std::iter::from_fn(|| signals.next()).map(Some).collect();
        assert_eq!(seen, [of(term), of(int), of(term), of(term), of(int)]);
        // Without a supervisor each is one.
        let mut signals = arrived(&all);
        assert_eq!(std::iter::from_fn(|| signals.next()).count(), all.len());
    }
}
