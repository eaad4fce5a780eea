//! Descriptors that a server sent: anything may be behind them.
//!
//! To close a socket that lingers, or to look at a file of a file system that hangs, can take as long
//! as the server likes. So all that is done to such a descriptor is done where nobody waits.

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use super::budget::Wait;

/// How many descriptors may wait to be closed.
const MOST: usize = 64;

/// A thread's stack in bytes.
const STACK: usize = 64 << 10;

/// Closes descriptors where nobody waits.
#[derive(Clone, Debug, Default)]
pub(super) struct FdCloser(Arc<Closing>);

#[derive(Debug, Default)]
struct Closing {
    /// To the thread that closes, once there is something to close; `None` if there can't be one.
    thread: OnceLock<Option<SyncSender<OwnedFd>>>,
    /// Some were left open.
    full: AtomicBool,
}

impl FdCloser {
    /// Whether the server has more descriptors waiting to be closed than it may.
    pub(super) fn is_full(&self) -> bool {
        self.0.full.load(Ordering::Relaxed)
    }

    fn close(&self, fd: OwnedFd) {
        let left = match self.0.thread.get_or_init(closing_thread) {
            Some(thread) => match thread.try_send(fd) {
                Ok(()) => return,
                Err(TrySendError::Full(fd) | TrySendError::Disconnected(fd)) => fd,
            },
            None => fd,
        };
        // It stays open; the server can't leave more behind than one message may carry.
        let _ = left.into_raw_fd();
        self.0.full.store(true, Ordering::Relaxed);
    }
}

fn closing_thread() -> Option<SyncSender<OwnedFd>> {
    let (sender, receiver) = mpsc::sync_channel(MOST);
    let thread = thread::Builder::new().name("vfio-user-close".to_owned()).stack_size(STACK);
    let started = thread.spawn(move || receiver.into_iter().for_each(drop));
    started.is_ok().then_some(sender)
}

/// A descriptor that a server sent, closed where nobody waits.
#[derive(Debug)]
pub(super) struct ReceivedFd {
    fd: Option<OwnedFd>,
    bin: FdCloser,
}

impl ReceivedFd {
    pub(super) fn new(fd: OwnedFd, bin: &FdCloser) -> Self {
        Self { fd: Some(fd), bin: bin.clone() }
    }
}

impl AsRawFd for ReceivedFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for ReceivedFd {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.bin.close(fd);
        }
    }
}

/// Does this in a thread of its own; `Ok(None)` if it takes longer than `wait` allows, and goes on.
///
/// # Errors
///
/// There can't be a thread.
pub(super) fn run_with_deadline<T: Send + 'static>(
    wait: &mut Wait<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("vfio-user-look".to_owned()).stack_size(STACK);
    // Nobody listens any more if it took too long.
    thread.spawn(move || drop(sender.send(work())))?;
    while let Some(step) = wait.next() {
        let started = Instant::now();
        match receiver.recv_timeout(step) {
            Ok(done) => {
                wait.waited(started.elapsed());
                return Ok(Some(done));
            }
            Err(RecvTimeoutError::Timeout) => wait.waited(started.elapsed()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(None)
}
