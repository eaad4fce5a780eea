//! A console on standard input and output: the event loop's part.

use std::fs::File;
use std::io::{self, Read};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;

use devices::console::Input;

use crate::terminal::{self, Terminal};

/// Ctrl-A, which begins a command to strait.
const ESCAPE: u8 = 0x01;

/// Finds commands to strait among the keys typed.
#[derive(Debug, Default)]
struct Escape {
    armed: bool,
}

impl Escape {
    /// Appends what is meant for the guest to `guest`; returns true for Ctrl-A x.
    fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> bool {
        for byte in typed {
            match (self.armed, *byte) {
                (false, ESCAPE) => self.armed = true,
                (true, b'x' | b'X') => return true,
                (true, ESCAPE) => {
                    self.armed = false;
                    guest.push(ESCAPE);
                }
                // No command of ours: both keys were meant for the guest.
                (true, other) => {
                    self.armed = false;
                    guest.extend([ESCAPE, other]);
                }
                (false, other) => guest.push(other),
            }
        }
        false
    }
}

/// What became of an attempt to move input to the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// All that was there has been moved.
    Moved,
    /// The guest's queue is full; its console signals when it has room.
    Full,
    /// There will be no more input.
    Closed,
    /// The terminal is another job's now.
    Background,
    /// Ctrl-A x was typed.
    Quit,
}

/// Standard input on its way to a guest's console.
pub struct StandardInput {
    source: ManuallyDrop<File>,
    device: Arc<dyn Input>,
    // On a terminal: Ctrl-A is a command only where a person types it.
    escape: Option<Escape>,
    terminal: Option<Terminal>,
    // Read, but not yet taken by the console.
    pending: Vec<u8>,
}

impl StandardInput {
    /// Standard input for `device`; a terminal becomes raw if it is this process's to use.
    pub(super) fn open(device: Arc<dyn Input>) -> Self {
        // SAFETY: descriptor 0 is standard input, or closed and then every read fails; it is
        // never closed through this File.
        let source = ManuallyDrop::new(unsafe { File::from_raw_fd(libc::STDIN_FILENO) });
        let escape = Terminal::is_stdin().then(Escape::default);
        let mut input = Self { source, device, escape, terminal: None, pending: Vec::new() };
        if input.escape.is_some() {
            // Once: the threads of a guest may not change what signals do.
            terminal::restore_on_fatal_signals();
        }
        input.take_terminal();
        input.resize();
        input
    }

    /// This file instead, which is no terminal.
    #[cfg(test)]
    pub fn of(source: File, device: Arc<dyn Input>) -> Self {
        let (escape, terminal, pending) = Default::default();
        Self { source: ManuallyDrop::new(source), device, escape, terminal, pending }
    }

    /// Tells the guest the size of the terminal, if there is one.
    pub fn resize(&self) {
        if self.escape.is_some()
            && let Some((columns, rows)) = terminal::size(&*self.source)
        {
            self.device.resize(columns, rows);
        }
    }

    /// Makes the terminal raw (again), if there is one and this process may.
    pub fn take_terminal(&mut self) {
        if self.escape.is_none() {
            return;
        }
        // The old state is put back first: whoever stopped us may have changed it since.
        self.terminal = None;
        if !Terminal::is_foreground() {
            log::info!("in the background: the console takes no input");
            return;
        }
        match Terminal::raw() {
            Ok(terminal) => self.terminal = Some(terminal),
            Err(e) => log::warn!("the terminal can't be made raw: {e}"),
        }
    }

    /// Whether reading is allowed: not for a job in the background of its terminal.
    pub fn is_readable(&self) -> bool {
        self.escape.is_none() || self.terminal.is_some()
    }

    /// Moves what is there to the console. Reads once: call when input is ready.
    pub fn read(&mut self) -> Progress {
        if self.flush() == Progress::Full {
            return Progress::Full;
        }
        let mut buffer = [0; 512];
        let typed = match self.source.read(&mut buffer) {
            Ok(0) => return Progress::Closed,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) =>
            {
                return Progress::Moved;
            }
            // EIO, as SIGTTIN is blocked: a job in the background must not read (termios, "Accessing
            // the Terminal" in POSIX.1-2017, 11.1.4).
            Err(_) if self.escape.is_some() && !Terminal::is_foreground() => {
                return Progress::Background;
            }
            // EIO: the terminal is gone.
            Err(_) => return Progress::Closed,
        };
        match &mut self.escape {
            Some(escape) => {
                if escape.filter(typed, &mut self.pending) {
                    return Progress::Quit;
                }
            }
            None => self.pending.extend_from_slice(typed),
        }
        self.flush()
    }

    /// Moves what is pending because the guest had no room.
    pub fn flush(&mut self) -> Progress {
        if self.pending.is_empty() {
            return Progress::Moved;
        }
        let taken = self.device.enqueue(&self.pending);
        self.pending.drain(..taken.min(self.pending.len()));
        if self.pending.is_empty() { Progress::Moved } else { Progress::Full }
    }
}

impl AsRawFd for StandardInput {
    fn as_raw_fd(&self) -> RawFd {
        self.source.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(typed: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut escape, mut guest) = (Escape::default(), Vec::new());
        let left = typed.iter().any(|bytes| escape.filter(bytes, &mut guest));
        (guest, left)
    }

    #[test]
    fn keys_reach_the_guest() {
        assert_eq!(filter(&[b"ls -l\r\x03\x04"]), (b"ls -l\r\x03\x04".to_vec(), false));
    }

    #[test]
    fn ctrl_a_x_leaves_even_in_two_reads() {
        assert_eq!(filter(&[b"ab\x01xcd"]), (b"ab".to_vec(), true));
        assert_eq!(filter(&[b"ab\x01", b"x"]), (b"ab".to_vec(), true));
    }

    #[test]
    fn ctrl_a_twice_is_one_for_the_guest() {
        assert_eq!(filter(&[b"\x01\x01x"]), (b"\x01x".to_vec(), false));
    }

    #[test]
    fn ctrl_a_with_another_key_is_the_guests() {
        assert_eq!(filter(&[b"\x01cx"]), (b"\x01cx".to_vec(), false));
    }
}
