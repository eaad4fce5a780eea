//! The thread that works on a queue.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::device_events::DeviceEvents;
use super::events;
use super::queue::{QueueError, VirtQueue};
use crate::ratelimit::LogLimit;

/// The half of a device that works on a queue.
pub trait QueueHandler: Send + 'static {
    /// The driver may have made buffers available: works on all of them.
    ///
    /// # Errors
    ///
    /// The driver has broken the queue: the device needs a reset.
    fn handle(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError>;

    /// The thread ends: waits for what still accesses guest RAM on its behalf. The queue isn't
    /// accessed any more.
    fn stop(&mut self) {}
}

/// The half of a device that works on a queue and on a file, such as a tap.
pub trait FileHandler: Send + 'static {
    /// The file, whose reads and writes don't block.
    fn file(&self) -> BorrowedFd<'_>;

    /// What it waited for has come; `event` tells what. Works on what there is, for a bounded time, and
    /// answers what it waits for next.
    ///
    /// # Errors
    ///
    /// The driver has broken the queue: the device needs a reset.
    fn handle(&mut self, queue: &mut VirtQueue, event: FileEvent) -> Result<Wait, QueueError>;
}

/// What a [`FileHandler`] waits for. A notification of the driver always ends the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A notification alone.
    Driver,
    /// A notification, for this long at most.
    DriverFor(Duration),
    /// Something to read in the file.
    Readable,
}

/// What a [`FileHandler`] waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileEvent {
    /// A notification, or the thread has just begun.
    Driver,
    /// Time has passed.
    Timeout,
    /// The file is readable, or has failed.
    File,
}

/// A thread that works on a queue until it is stopped.
///
/// With a [`QueueHandler`] it waits in a blocking read of the notification's eventfd: the fewest
/// system calls that there can be for a request. With a [`FileHandler`] it polls two descriptors.
#[derive(Debug)]
pub struct QueueThread {
    stop: Arc<AtomicBool>,
    kick: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl QueueThread {
    /// Starts it, called `name` (at most 15 bytes).
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub fn start<H: QueueHandler>(
        name: &str,
        queue: VirtQueue,
        handler: H,
        events: Arc<DeviceEvents>,
        log: Arc<LogLimit>,
    ) -> io::Result<Self> {
        // What was made available before is told by no notification.
        let step = |queue: &mut VirtQueue, handler: &mut H| {
            handler.handle(queue)?;
            events::wait(queue.kick());
            Ok(())
        };
        Self::spawn(name, (queue, handler), (events, log), step, H::stop)
    }

    /// The same with a handler that waits for a file, too.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub fn start_with_file<H: FileHandler>(
        name: &str,
        queue: VirtQueue,
        handler: H,
        events: Arc<DeviceEvents>,
        log: Arc<LogLimit>,
    ) -> io::Result<Self> {
        let mut event = FileEvent::Driver;
        let step = move |queue: &mut VirtQueue, handler: &mut H| {
            let wait = handler.handle(queue, event)?;
            event = poll(queue.kick(), handler.file(), wait);
            Ok(())
        };
        Self::spawn(name, (queue, handler), (events, log), step, |_| ())
    }

    /// Starts a thread that repeats `step` until it is asked to stop, and does `end` then.
    fn spawn<H: Send + 'static>(
        name: &str,
        (mut queue, mut handler): (VirtQueue, H),
        (events, log): (Arc<DeviceEvents>, Arc<LogLimit>),
        mut step: impl FnMut(&mut VirtQueue, &mut H) -> Result<(), QueueError> + Send + 'static,
        end: fn(&mut H),
    ) -> io::Result<Self> {
        let kick = queue.kick().try_clone()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                if let Err(error) = step(&mut queue, &mut handler) {
                    log.warn(format_args!("{error}: the guest has to reset the device"));
                    events.fail();
                    break;
                }
            }
            end(&mut handler);
        })?;
        Ok(Self { stop, kick, thread: Some(thread) })
    }

    /// Asks it to stop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Fails only while as many signals are pending as the counter holds.
        let _ = self.kick.write(1);
    }

    /// Whether it has stopped.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.store(true, Ordering::Release);
            let _ = self.kick.write(1);
            let _ = thread.join();
        }
    }
}

/// The threads of a device with one for each queue that works.
#[derive(Debug, Default)]
pub struct QueueThreads(BTreeMap<u16, QueueThread>);

impl QueueThreads {
    /// Adds the thread of a queue.
    pub fn add(&mut self, queue: u16, thread: QueueThread) {
        self.0.insert(queue, thread);
    }

    /// Asks all of them to stop.
    pub fn stop(&self) {
        self.0.values().for_each(QueueThread::stop);
    }

    /// Whether all of them have stopped; they are gone then.
    pub fn is_stopped(&mut self) -> bool {
        self.0.retain(|_, thread| !thread.is_finished());
        self.0.is_empty()
    }

    /// Asks that of this queue to stop.
    pub fn stop_queue(&self, queue: u16) {
        self.0.get(&queue).into_iter().for_each(QueueThread::stop);
    }

    /// Whether that of this queue has stopped; it is gone then.
    pub fn is_queue_stopped(&mut self, queue: u16) -> bool {
        if self.0.get(&queue).is_some_and(|thread| !thread.is_finished()) {
            return false;
        }
        self.0.remove(&queue);
        true
    }
}

/// A time as the kernel takes it.
fn timespec(time: Duration) -> libc::timespec {
    // SAFETY: all zeroes is a valid timespec.
    let mut spec: libc::timespec = unsafe { std::mem::zeroed() };
    spec.tv_sec = libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX);
    spec.tv_nsec = time.subsec_nanos().into();
    spec
}

/// Waits for a notification, and for what else a handler waits for.
fn poll(kick: &EventFd, file: BorrowedFd<'_>, waits: Wait) -> FileEvent {
    let (count, timeout) = match waits {
        Wait::Driver => {
            events::wait(kick);
            return FileEvent::Driver;
        }
        Wait::DriverFor(time) => (1, Some(timespec(time))),
        Wait::Readable => (2, None),
    };
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut entries = [entry(kick.as_raw_fd()), entry(file.as_raw_fd())];
    // SAFETY: `entries` has two entries, at least as many as are polled; the timeout is null or one
    // that lives on, and so is the signal mask null.
    let ready = unsafe { libc::ppoll(entries.as_mut_ptr(), count, timeout, std::ptr::null()) };
    let [notified, _] = entries;
    if ready <= 0 {
        // An interrupted wait counts as a notification.
        return if ready == 0 { FileEvent::Timeout } else { FileEvent::Driver };
    }
    if notified.revents != 0 {
        // This thread alone reads it, so there is something to read.
        events::wait(kick);
        return FileEvent::Driver;
    }
    FileEvent::File
}
