//! Descriptors that a server sent: anything may be behind them.
//!
//! Closing a socket that lingers, or inspecting a file of a file system that hangs, can take as long as
//! the server likes. So it is done in threads that nobody waits for beyond a limit.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::budget::Wait;
use super::error::{Failure, FailureKind};
use crate::answer::{self, NoAnswer};
use crate::sync::lock;
use crate::thread_kind::ThreadKind;

/// How many descriptors may wait to be closed.
const MAX_CLOSING: usize = 64;

/// How long a pause waits for a descriptor that takes its time to be closed.
const PAUSE: Duration = Duration::from_millis(100);

/// A thread's stack in bytes.
pub(super) const STACK_SIZE: usize = 64 << 10;

/// Closes descriptors in a thread.
#[derive(Clone, Debug, Default)]
pub(super) struct FdCloser(Arc<Closing>);

#[derive(Debug, Default)]
struct Closing {
    /// The thread, once there is something to close.
    thread: Mutex<Option<ClosingThread>>,
    /// Descriptors were left open.
    overflowed: AtomicBool,
}

#[derive(Debug)]
struct ClosingThread {
    queue: QueueOwner,
    thread: JoinHandle<()>,
}

/// Descriptors that wait to be closed. A channel of the standard library asks the kernel for another thread's turn
/// (`sched_yield(2)`) where two are at it at the same time, for which no thread needs to be allowed so.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    fds: VecDeque<OwnedFd>,
    /// No more come.
    ended: bool,
}

impl Queue {
    /// Adds one; answers it if too many wait already.
    fn add(&self, fd: OwnedFd) -> Result<(), OwnedFd> {
        let mut waiting = lock(&self.waiting);
        if waiting.fds.len() >= MAX_CLOSING {
            return Err(fd);
        }
        waiting.fds.push_back(fd);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for the next; `None` at the end.
    fn next(&self) -> Option<OwnedFd> {
        let waiting = lock(&self.waiting);
        let waits = |waiting: &mut Waiting| waiting.fds.is_empty() && !waiting.ended;
        let waiting = self.changed.wait_while(waiting, waits);
        waiting.unwrap_or_else(PoisonError::into_inner).fds.pop_front()
    }
}

/// Whose end is that of its thread, once all that waits is closed.
#[derive(Debug)]
struct QueueOwner(Arc<Queue>);

impl Drop for QueueOwner {
    fn drop(&mut self) {
        lock(&self.0.waiting).ended = true;
        self.0.changed.notify_one();
    }
}

impl FdCloser {
    /// Whether the server has sent more descriptors than may wait to be closed.
    pub(super) fn has_overflowed(&self) -> bool {
        self.0.overflowed.load(Ordering::Relaxed)
    }

    /// Ends the thread once what is given to it is closed, if that is soon.
    pub(super) fn pause(&self) {
        let Some(ClosingThread { queue, thread }) = lock(&self.0.thread).take() else { return };
        drop(queue);
        let since = Instant::now();
        while !thread.is_finished() && since.elapsed() < PAUSE {
            thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            // A panic in the thread has ended the process already.
            let _ = thread.join();
        }
    }

    /// Starts the thread, which can't be done any more once the guest runs.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let mut thread = lock(&self.0.thread);
        if thread.is_none() {
            *thread = Some(closing_thread()?);
        }
        Ok(())
    }

    fn close(&self, fd: OwnedFd) {
        let mut thread = lock(&self.0.thread);
        if thread.is_none() {
            *thread = closing_thread().ok();
        }
        let left = match &*thread {
            Some(thread) => match thread.queue.0.add(fd) {
                Ok(()) => return,
                Err(fd) => fd,
            },
            None => fd,
        };
        // It stays open. The connection ends, so no more are left so than one message may carry.
        let _ = left.into_raw_fd();
        self.0.overflowed.store(true, Ordering::Relaxed);
    }
}

fn closing_thread() -> io::Result<ClosingThread> {
    let queue = QueueOwner(Arc::default());
    let theirs = queue.0.clone();
    let thread = thread::Builder::new().name("vfio-user-close".to_owned()).stack_size(STACK_SIZE);
    let thread = thread.spawn(move || {
        ThreadKind::VfioUser.enter();
        while let Some(fd) = theirs.next() {
            drop(fd);
        }
    });
    thread.map(|thread| ClosingThread { queue, thread })
}

/// A descriptor that a server sent, closed in a thread.
#[derive(Debug)]
pub(super) struct ReceivedFd {
    fd: Option<OwnedFd>,
    closer: FdCloser,
}

impl ReceivedFd {
    pub(super) fn new(fd: OwnedFd, closer: &FdCloser) -> Self {
        Self { fd: Some(fd), closer: closer.clone() }
    }

    /// What closes it.
    pub(super) fn closer(&self) -> &FdCloser {
        &self.closer
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
            self.closer.close(fd);
        }
    }
}

/// Runs `work` on a server's file in a thread and waits for it as long as `wait` allows; it may go on
/// afterwards.
pub(super) fn run_with_deadline<T: Send + 'static>(
    wait: &mut Wait<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let no_thread =
        |error| Failure::new(FailureKind::Host, format!("strait has no thread: {error}"));
    let (answerer, answer) = answer::expected();
    let thread = thread::Builder::new().name("vfio-user-look".to_owned()).stack_size(STACK_SIZE);
    // Nobody waits any more if it took too long.
    thread.spawn(move || answerer.answer(work())).map_err(no_thread)?;
    let late = || "the server's file can't be looked at in time".to_owned();
    loop {
        match wait.step(late, |longest| answer.wait(longest))? {
            Ok(done) => return Ok(done),
            Err(NoAnswer::Late) => {}
            Err(NoAnswer::Never) => {
                return Err(Failure::new(FailureKind::Host, "a thread has ended without a result"));
            }
        }
    }
}
