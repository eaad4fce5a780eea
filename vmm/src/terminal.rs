//! The terminal in raw mode, and back, whatever happens.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::signal::create_sigset;

/// Signals that end the process at once: the terminal is put right before they do.
const FATAL: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// What standard input's terminal was like, for whoever restores it: the owner of [`Terminal`], or a
/// fatal signal. One per process, as there is one standard input.
struct Saved {
    state: AtomicU8,
    attributes: UnsafeCell<MaybeUninit<libc::termios>>,
}

/// Nothing is saved.
const IDLE: u8 = 0;
/// One thread has the attributes to itself.
const BUSY: u8 = 1;
/// They are saved, and the terminal is raw.
const ACTIVE: u8 = 2;

impl Saved {
    /// Changes the state; whether it was `from`.
    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

// SAFETY: `attributes` is accessed only by who has changed the state to BUSY.
unsafe impl Sync for Saved {}

static SAVED: Saved =
    Saved { state: AtomicU8::new(IDLE), attributes: UnsafeCell::new(MaybeUninit::uninit()) };

/// Standard input's terminal, raw for as long as this exists.
#[derive(Debug)]
pub struct Terminal(());

impl Terminal {
    /// Whether standard input is a terminal.
    pub fn is_stdin() -> bool {
        // SAFETY: isatty takes any descriptor number.
        unsafe { libc::isatty(libc::STDIN_FILENO) == 1 }
    }

    /// Whether this process may read and change standard input's terminal: a job in the
    /// background would be stopped for reading. Safe in a signal handler.
    pub fn is_foreground() -> bool {
        // SAFETY: both take no pointers.
        unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
    }

    /// Makes standard input's terminal raw: every key goes to the guest. Output is still
    /// processed, so that strait's own lines end where they should. Fatal signals put it back once
    /// [`restore_on_fatal_signals`] was called.
    ///
    /// # Errors
    ///
    /// It is no terminal, or is raw already on behalf of this process.
    pub fn raw() -> io::Result<Self> {
        let mut saved = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the structure it is given, or fails.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, saved.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: tcgetattr succeeded, so the structure is filled.
        let mut raw = unsafe { saved.assume_init() };
        if !SAVED.change(IDLE, BUSY) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        // SAFETY: the state was changed to BUSY here.
        unsafe { (*SAVED.attributes.get()).write(raw) };
        SAVED.change(BUSY, ACTIVE);
        let terminal = Self(());
        // SAFETY: `raw` is a valid termios, changed in place.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        raw.c_oflag |= libc::OPOST | libc::ONLCR;
        // SAFETY: `raw` is a valid termios.
        if unsafe { set(&raw const raw) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(terminal)
    }
}

/// What standard input's terminal is like, for a process whose child makes it raw, and may end without
/// having put it right.
pub struct Attributes(libc::termios);

impl Attributes {
    /// The present ones; `None` if standard input is no terminal.
    pub fn of_stdin() -> Option<Self> {
        let mut saved = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the structure it is given, or fails.
        let result = unsafe { libc::tcgetattr(libc::STDIN_FILENO, saved.as_mut_ptr()) };
        // SAFETY: tcgetattr succeeded, so the structure is filled.
        (result == 0).then(|| Self(unsafe { saved.assume_init() }))
    }

    /// Has a fatal signal of this process put the terminal back, too: its child is killed then, and may not
    /// come to it.
    pub fn restore_on_fatal_signals(&self) {
        if SAVED.change(IDLE, BUSY) {
            // SAFETY: the state was changed to BUSY here.
            unsafe { (*SAVED.attributes.get()).write(self.0) };
            SAVED.change(BUSY, ACTIVE);
            restore_on_fatal_signals();
        }
    }

    /// Puts the terminal back as it was, unless another job has it.
    #[cold]
    pub fn restore(&self) {
        if Terminal::is_foreground() {
            // SAFETY: these are valid attributes.
            unsafe { set(&raw const self.0) };
        }
    }
}

/// The size of a terminal in columns and rows (ioctl_tty(2), `TIOCGWINSZ`).
pub fn size(terminal: &impl AsRawFd) -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: TIOCGWINSZ fills a winsize, or fails.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) };
    // SAFETY: it is filled, and all zeroes are valid too.
    let size = unsafe { size.assume_init() };
    (result == 0).then_some((size.ws_col, size.ws_row))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Sets the attributes of standard input's terminal; safe in a signal handler.
///
/// This process may be put into the background at any time: setting attributes from there stops it,
/// unless SIGTTOU is blocked (tcsetattr(3)).
///
/// # Safety
///
/// `attributes` must point to a valid termios.
unsafe fn set(attributes: *const libc::termios) -> libc::c_int {
    let Ok(ttou) = create_sigset(&[libc::SIGTTOU]) else { return -1 };
    let mut before = MaybeUninit::uninit();
    // SAFETY: the first pthread_sigmask fills the set that the second is given. The caller answers for
    // `attributes`. All calls, with those of `create_sigset`, are async-signal-safe (POSIX.1-2017,
    // 2.4.3).
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const ttou, before.as_mut_ptr());
        let result = libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, attributes);
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        result
    }
}

/// Puts the terminal back as it was; safe in a signal handler. A terminal that another job has in
/// the foreground is that one's: a shell has put it right when it stopped us.
fn restore() {
    if !SAVED.change(ACTIVE, BUSY) {
        return;
    }
    if Terminal::is_foreground() {
        // SAFETY: it was active, so the attributes are written; the state was changed to BUSY here.
        unsafe { set((*SAVED.attributes.get()).as_ptr()) };
    }
    SAVED.change(BUSY, IDLE);
}

/// Has fatal signals put the terminal right, if it was made raw by then; a panic ends in one of them.
pub fn restore_on_fatal_signals() {
    for signal in FATAL {
        // SAFETY: the handler calls only async-signal-safe functions; SA_RESETHAND brings the
        // default action back, which ends the process when `on_fatal_signal` raises the signal again.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fatal_signal as *const () as usize;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

extern "C" fn on_fatal_signal(signal: libc::c_int) {
    restore();
    // SAFETY: raise is async-signal-safe.
    unsafe { libc::raise(signal) };
}
