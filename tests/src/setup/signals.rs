//! Ctrl-C while a child process works: the child's whole process group ends, then this run does.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

/// How many process groups can run at once; each thread of a set-up runs one.
const CAPACITY: usize = 16;

/// The process groups that end with this run; 0 is a free place.
static GROUPS: [AtomicI32; CAPACITY] = [const { AtomicI32::new(0) }; CAPACITY];
/// How many signals have come.
static SIGNALS: AtomicUsize = AtomicUsize::new(0);
/// One part of the set-up failed, so the others needn't go on.
static CANCELLED: AtomicBool = AtomicBool::new(false);

const ENDING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Whether the person, or another part's failure, wants everything to end.
pub(super) fn requested() -> bool {
    CANCELLED.load(Ordering::SeqCst) || SIGNALS.load(Ordering::SeqCst) > 0
}

/// Ends what runs, and lets nothing new start.
pub(super) fn cancel() {
    CANCELLED.store(true, Ordering::SeqCst);
    end_groups(libc::SIGTERM);
}

/// While it lives, signals that end a process end the registered process groups instead; the first
/// asks (SIGTERM), the next ones insist (SIGKILL).
pub(super) struct SignalHandlers {
    previous: Vec<(libc::c_int, libc::sigaction)>,
}

impl SignalHandlers {
    /// Installs the handlers.
    pub(super) fn install() -> io::Result<Self> {
        let mut handlers = Self { previous: Vec::new() };
        for signal in ENDING {
            // SAFETY: an all-zero sigaction is a valid value of that C structure.
            let (mut action, mut old): (libc::sigaction, libc::sigaction) =
                unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
            let handler: extern "C" fn(libc::c_int) = on_signal;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: both structures live across the call, and the handler does only what is
            // allowed in one: atomics and kill(2).
            if unsafe { libc::sigaction(signal, &action, &mut old) } != 0 {
                return Err(io::Error::last_os_error());
            }
            handlers.previous.push((signal, old));
        }
        Ok(handlers)
    }
}

impl Drop for SignalHandlers {
    fn drop(&mut self) {
        for (signal, old) in &self.previous {
            // SAFETY: `old` is what sigaction(2) itself returned for this signal.
            unsafe { libc::sigaction(*signal, old, std::ptr::null_mut()) };
        }
    }
}

/// A process group that ends with this run.
pub(super) struct Group {
    place: &'static AtomicI32,
}

impl Group {
    /// Registers the group that the process `leader` leads.
    pub(super) fn register(leader: u32) -> Self {
        let id = i32::try_from(leader).unwrap_or(0);
        let place = loop {
            let free = GROUPS
                .iter()
                .find(|g| g.compare_exchange(0, id, Ordering::SeqCst, Ordering::SeqCst).is_ok());
            match free {
                Some(place) => break place,
                None => std::thread::sleep(std::time::Duration::from_millis(50)),
            }
        };
        // A signal between the process's start and its registration has missed it.
        if requested() {
            kill(id, libc::SIGTERM);
        }
        Self { place }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.place.store(0, Ordering::SeqCst);
    }
}

/// Makes the child end when the thread that starts it does, even if that is killed. The thread has
/// to wait for the child.
pub(super) fn end_with_parent(command: &mut Command) {
    let ask = || {
        // SAFETY: PR_SET_PDEATHSIG takes a number and touches no memory.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure makes one system call; it allocates nothing and
    // takes no lock.
    unsafe { command.pre_exec(ask) };
}

extern "C" fn on_signal(_: libc::c_int) {
    let earlier = SIGNALS.fetch_add(1, Ordering::SeqCst);
    end_groups(if earlier == 0 { libc::SIGTERM } else { libc::SIGKILL });
}

fn end_groups(signal: libc::c_int) {
    for group in &GROUPS {
        kill(group.load(Ordering::SeqCst), signal);
    }
}

fn kill(group: i32, signal: libc::c_int) {
    if group > 1 {
        // SAFETY: kill(2) takes no pointers; the group is one that this run started.
        unsafe { libc::kill(-group, signal) };
    }
}
