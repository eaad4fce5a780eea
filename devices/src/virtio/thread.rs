//! The thread that works on a queue.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::device_events::DeviceEvents;
use super::events;
use super::queue::{QueueError, VirtQueue};
use crate::poll;
use crate::ratelimit::LogLimit;
use crate::task_thread::{Task, TaskThread};
use crate::thread_kind::ThreadKind;

/// The half of a device that works on a queue.
pub trait QueueHandler: Send + 'static {
    /// The driver may have made buffers available: works on all that it [can take](VirtQueue::pop).
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

/// A thread at work on a queue until it is stopped.
///
/// With a [`QueueHandler`] it waits in a blocking read of the notification's eventfd: the fewest
/// system calls that there can be for a request. With a [`FileHandler`] it polls two descriptors.
#[derive(Debug)]
pub struct QueueThread {
    stop: Arc<AtomicBool>,
    kick: EventFd,
    task: Option<Task<()>>,
}

impl QueueThread {
    /// Has `thread` work on it.
    ///
    /// # Errors
    ///
    /// The thread has something to do already, or the host has no more descriptors.
    pub fn start<H: QueueHandler>(
        thread: &TaskThread,
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
        Self::run(thread, (queue, handler), (events, log), step, H::stop)
    }

    /// The same with a handler that waits for a file, too.
    ///
    /// # Errors
    ///
    /// The thread has something to do already, or the host has no more descriptors.
    pub fn start_with_file<H: FileHandler>(
        thread: &TaskThread,
        queue: VirtQueue,
        handler: H,
        events: Arc<DeviceEvents>,
        log: Arc<LogLimit>,
    ) -> io::Result<Self> {
        let mut event = FileEvent::Driver;
        let step = move |queue: &mut VirtQueue, handler: &mut H| {
            let wait = handler.handle(queue, event)?;
            event = wait_for(queue.kick(), handler.file(), wait);
            Ok(())
        };
        Self::run(thread, (queue, handler), (events, log), step, |_| ())
    }

    /// Has a thread repeat `step` until it is asked to stop, and do `end` then.
    fn run<H: Send + 'static>(
        thread: &TaskThread,
        (mut queue, mut handler): (VirtQueue, H),
        (events, log): (Arc<DeviceEvents>, Arc<LogLimit>),
        mut step: impl FnMut(&mut VirtQueue, &mut H) -> Result<(), QueueError> + Send + 'static,
        end: fn(&mut H),
    ) -> io::Result<Self> {
        let kick = queue.kick().try_clone()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = thread.run(move || {
            while !stopped.load(Ordering::Acquire) {
                if let Err(error) = step(&mut queue, &mut handler) {
                    log.warn(format_args!("{error}: the guest has to reset the device"));
                    events.fail();
                    break;
                }
            }
            end(&mut handler);
        })?;
        Ok(Self { stop, kick, task: Some(task) })
    }

    /// Asks it to stop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Fails only while as many signals are pending as the counter holds.
        let _ = self.kick.write(1);
    }

    /// Whether it has stopped.
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(Task::is_finished)
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            self.stop();
            let _ = task.join();
        }
    }
}

/// The threads of a device, one for each queue: made [before](Self::prepare) the guest runs, at work
/// while the driver has the queue enabled.
#[derive(Debug)]
pub struct QueueThreads {
    kind: ThreadKind,
    // Before the threads, which it stops.
    working: BTreeMap<u16, QueueThread>,
    threads: BTreeMap<u16, TaskThread>,
}

impl QueueThreads {
    /// None yet; all will be of this kind.
    pub fn new(kind: ThreadKind) -> Self {
        Self { kind, working: BTreeMap::new(), threads: BTreeMap::new() }
    }

    /// Makes the thread of a queue, called `name` (at most 15 bytes), if there is none.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub fn prepare(&mut self, queue: u16, name: &str) -> io::Result<()> {
        self.thread(queue, name).map(|_| ())
    }

    fn thread(&mut self, queue: u16, name: &str) -> io::Result<&TaskThread> {
        match self.threads.entry(queue) {
            Entry::Occupied(there) => Ok(there.into_mut()),
            Entry::Vacant(free) => Ok(free.insert(TaskThread::start(self.kind, name, None)?)),
        }
    }

    /// Has the queue's thread, called `name` if it isn't [made](Self::prepare) yet, work on it.
    ///
    /// # Errors
    ///
    /// The thread works on it already, or the host has no more threads or descriptors.
    pub fn start<H: QueueHandler>(
        &mut self,
        name: &str,
        queue: VirtQueue,
        handler: H,
        events: Arc<DeviceEvents>,
        log: Arc<LogLimit>,
    ) -> io::Result<()> {
        self.start_on(name, queue, |thread, queue| {
            QueueThread::start(thread, queue, handler, events, log)
        })
    }

    /// The same with a handler that waits for a file, too.
    ///
    /// # Errors
    ///
    /// The thread works on it already, or the host has no more threads or descriptors.
    pub fn start_with_file<H: FileHandler>(
        &mut self,
        name: &str,
        queue: VirtQueue,
        handler: H,
        events: Arc<DeviceEvents>,
        log: Arc<LogLimit>,
    ) -> io::Result<()> {
        self.start_on(name, queue, |thread, queue| {
            QueueThread::start_with_file(thread, queue, handler, events, log)
        })
    }

    /// Starts work on a queue, in the thread that is its.
    fn start_on(
        &mut self,
        name: &str,
        queue: VirtQueue,
        start: impl FnOnce(&TaskThread, VirtQueue) -> io::Result<QueueThread>,
    ) -> io::Result<()> {
        let index = queue.index();
        let working = start(self.thread(index, name)?, queue)?;
        self.working.insert(index, working);
        Ok(())
    }

    /// Asks all of them to stop.
    pub fn stop(&self) {
        self.working.values().for_each(QueueThread::stop);
    }

    /// Whether all of them have stopped.
    pub fn is_stopped(&mut self) -> bool {
        self.working.retain(|_, thread| !thread.is_finished());
        self.working.is_empty()
    }

    /// Asks that of this queue to stop.
    pub fn stop_queue(&self, queue: u16) {
        self.working.get(&queue).into_iter().for_each(QueueThread::stop);
    }

    /// Whether that of this queue has stopped.
    pub fn is_queue_stopped(&mut self, queue: u16) -> bool {
        if self.working.get(&queue).is_some_and(|thread| !thread.is_finished()) {
            return false;
        }
        self.working.remove(&queue);
        true
    }
}

/// Waits for a notification, and for what else a handler waits for.
fn wait_for(kick: &EventFd, file: BorrowedFd<'_>, waits: Wait) -> FileEvent {
    let (file, longest) = match waits {
        Wait::Driver => {
            events::wait(kick);
            return FileEvent::Driver;
        }
        // A negative descriptor is ignored.
        Wait::DriverFor(time) => (-1, Some(time)),
        Wait::Readable => (file.as_raw_fd(), None),
    };
    let mut entries = [poll::readable(kick.as_raw_fd()), poll::readable(file)];
    match poll::wait(&mut entries, longest) {
        Ok(0) => return FileEvent::Timeout,
        Ok(_) => {}
        // One that has failed counts as a notification.
        Err(_) => return FileEvent::Driver,
    }
    if entries.first().is_some_and(|kick| kick.revents != 0) {
        // This thread alone reads it, so there is something to read.
        events::wait(kick);
        return FileEvent::Driver;
    }
    FileEvent::File
}
