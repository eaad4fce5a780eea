//! Standard output and standard error.
//!
//! No output ends or blocks a run: neither a vCPU thread nor the event loop ever waits for a reader with
//! a lock held, or without a time limit. A guest whose console is read too slowly is slowed down, the
//! log never is; what a stalled reader doesn't take is dropped, counted, and reported at the end.

mod client;
mod file;
mod sink;
mod write;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::panic::PanicHookInfo;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde::Serialize;
use sink::{POLL_INTERVAL, STALL_TIMEOUT};

pub use client::ClientBuffer;
pub use file::FileBuffer;
pub use sink::Sink;
pub use write::wait as wait_until_writable;

use devices::{stop, sync};
use log::{LevelFilter, Log, Metadata, Record};
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::signals;
use crate::waker::Waker;

/// Standard output: the guest's serial console, or a command's answer.
static STDOUT: Sink = Sink::new(libc::STDOUT_FILENO);

/// Standard error: the log and the error that strait ends with.
static STDERR: Sink = Sink::new(libc::STDERR_FILENO);

/// The buffers of consoles that are elsewhere.
static CONSOLES: Mutex<Vec<ConsoleBuffer>> = Mutex::new(Vec::new());

/// The buffer of a console that isn't standard output.
#[derive(Clone)]
enum ConsoleBuffer {
    Clients(Arc<ClientBuffer>),
    File(Arc<FileBuffer>),
}

/// How long the last lines wait for a reader that takes nothing.
const SHORT_TIMEOUT: Duration = Duration::from_millis(500);

/// Called when something waits to be written while the event loop runs.
static EVENT_LOOP: OnceLock<Arc<Waker>> = OnceLock::new();

/// Has this called whenever something begins to wait.
pub fn set_waker(waker: &Arc<Waker>) {
    let _ = EVENT_LOOP.set(waker.clone());
}

/// Opens what is to be opened for output, which later can't be.
pub fn open() {
    sinks().into_iter().for_each(Sink::open);
}

/// Those in which something waits to be written.
pub fn sinks() -> [&'static Sink; 2] {
    [&STDOUT, &STDERR]
}

/// Has a vCPU wait until there is room for more output, unless `stop` or its reader is stalled.
#[cold]
pub fn wait_for_room(stop: impl Fn() -> bool) {
    STDOUT.wait_for_room(&stop);
    for console in consoles() {
        if let ConsoleBuffer::File(file) = console {
            file.wait_for_room(&stop);
        }
    }
}

/// A new buffer for the output of a console whose clients come and go. `backlog` is signalled when
/// bytes begin to wait for a client that is there.
pub fn for_clients(backlog: EventFd) -> Arc<ClientBuffer> {
    let buffer = Arc::new(ClientBuffer::new(backlog));
    sync::lock(&CONSOLES).push(ConsoleBuffer::Clients(buffer.clone()));
    buffer
}

/// A new buffer for the output of the console with this name to a file, which is written once
/// [its thread has started](start_threads).
pub fn to_file(file: File, name: &'static str) -> Arc<FileBuffer> {
    let buffer = Arc::new(FileBuffer::new(file, name));
    sync::lock(&CONSOLES).push(ConsoleBuffer::File(buffer.clone()));
    buffer
}

/// Starts the threads that write consoles' output to files; each calls `enter` first.
///
/// # Errors
///
/// The host allows no more threads.
pub fn start_threads(enter: fn()) -> io::Result<()> {
    consoles().iter().try_for_each(|console| match console {
        ConsoleBuffer::Clients(_) => Ok(()),
        ConsoleBuffer::File(file) => file.start(enter),
    })
}

fn consoles() -> Vec<ConsoleBuffer> {
    sync::lock(&CONSOLES).clone()
}

impl ConsoleBuffer {
    fn dropped(&self) -> u64 {
        match self {
            Self::Clients(clients) => clients.dropped(),
            Self::File(file) => file.dropped(),
        }
    }

    fn finish(&self, timeout: Duration) {
        match self {
            Self::Clients(clients) => clients.finish(timeout, signals::is_end_pending),
            Self::File(file) => file.finish(timeout, signals::is_end_pending),
        }
    }
}

/// Bytes that were dropped because nobody read them.
#[derive(Debug, Serialize)]
pub struct Dropped {
    /// Of the guest's consoles.
    console: u64,
    /// Of the log.
    log: u64,
}

/// What was dropped so far.
pub fn dropped() -> Dropped {
    let elsewhere = consoles().iter().fold(0_u64, |sum, one| sum.saturating_add(one.dropped()));
    Dropped { console: STDOUT.dropped().saturating_add(elsewhere), log: STDERR.dropped() }
}

/// Takes output of the guest; whether it should wait before it makes more.
///
/// # Errors
///
/// Standard output can't be written.
pub fn console(bytes: &[u8]) -> io::Result<bool> {
    let put = STDOUT.put(bytes)?;
    if put.began {
        wake_event_loop();
    }
    Ok(put.full)
}

/// The logger: lines on standard error.
struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // What gdbstub has to say is of what a debugger sends, without a limit.
        if self.enabled(record.metadata()) && !record.target().starts_with("gdbstub") {
            let level = record.level().as_str().to_ascii_lowercase();
            log(&format!("strait: {level}: {}\n", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Logs what is at least as severe as `level` from here on.
pub fn init_log(level: LevelFilter) {
    // The only failure is that a logger is set already, and then it is this one.
    let _ = log::set_logger(&Logger);
    log::set_max_level(level);
}

/// Takes a line of the log, with its end.
fn log(line: &str) {
    // Only where there is room for it, which there is if nothing waits.
    if STDERR.dropped() != 0 && STDERR.flush() {
        let dropped = STDERR.take_dropped();
        say(&format!("strait: warning: {dropped} bytes of the log were dropped\n"));
    }
    say(line);
}

/// Takes lines for standard error as they are.
pub fn say(text: &str) {
    // Nothing can be done where standard error can't be written.
    if STDERR.put(text.as_bytes()).is_ok_and(|put| put.began) {
        wake_event_loop();
    }
}

fn wake_event_loop() {
    if let Some(waker) = EVENT_LOOP.get() {
        waker.wake();
    }
}

/// Prints a command's answer, all of it: waits for its reader. A closed standard output is no error.
///
/// # Errors
///
/// It can't be written, or a signal has ended the wait.
pub fn print(text: &str) -> Result<(), Error> {
    for part in text.as_bytes().chunks(PART) {
        match STDOUT.put(part) {
            Ok(_) => STDOUT.drain(signals::is_end_pending),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => {
                return Err(Error::new(format!("standard output can't be written: {error}")));
            }
        }
        stop::check()?;
    }
    Ok(())
}

/// Writes all of this to a file that is open non-blocking.
///
/// # Errors
///
/// It can't be written, nobody reads it for a while, or a signal has ended the wait.
pub fn write(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    let (mut left, mut since) = (bytes, Instant::now());
    while !left.is_empty() {
        match file.write(left) {
            Ok(written) => {
                left = left.get(written..).unwrap_or_default();
                since = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if since.elapsed() >= STALL_TIMEOUT || signals::is_end_pending() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                write::wait(file.as_raw_fd(), POLL_INTERVAL);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes what is buffered of the guest's output, for a short time only if `soon`.
pub fn finish_console(soon: bool) {
    let timeout = if soon { SHORT_TIMEOUT } else { STALL_TIMEOUT };
    STDOUT.finish(timeout, signals::is_end_pending);
    for console in consoles() {
        console.finish(timeout);
        match console.dropped() {
            0 => {}
            dropped => log::info!("{dropped} bytes of a console's output were dropped"),
        }
    }
    let dropped = STDOUT.dropped();
    if dropped != 0 && !STDOUT.is_closed() {
        log::warn!("{dropped} bytes of the guest's output were dropped: nobody read them");
    }
}

/// Writes what is buffered for standard error, for a short time.
pub fn finish() {
    STDERR.finish(SHORT_TIMEOUT, signals::is_end_pending);
}

/// Has panics reported as all else is: without waiting, not even for a lock.
pub fn report_panics() {
    fn report(info: &PanicHookInfo<'_>) {
        let _ = STDERR.try_put(format!("strait: {info}\n").as_bytes());
    }
    std::panic::set_hook(Box::new(report));
}

/// How much is handed to standard output at once, in bytes.
const PART: usize = 4096;
