//! The thread that works on a queue.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

use super::device::DeviceEvents;
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
}

/// A thread that calls a handler at each notification of a queue.
///
/// It waits in a blocking read of the notification's eventfd: the fewest system calls that there can
/// be for a request.
#[derive(Debug)]
pub struct QueueThread<H> {
    stop: Arc<AtomicBool>,
    kick: EventFd,
    thread: Option<JoinHandle<H>>,
}

impl<H: QueueHandler> QueueThread<H> {
    /// Starts it, called `name` (at most 15 bytes).
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub fn start(
        name: &str,
        mut queue: VirtQueue,
        mut handler: H,
        events: Arc<DeviceEvents>,
        log: Arc<LogLimit>,
    ) -> io::Result<Self> {
        let kick = queue.kick().try_clone()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            // What was made available before is told by no notification.
            while !stopped.load(Ordering::Acquire) {
                if let Err(error) = handler.handle(&mut queue) {
                    log.warn(format_args!("{error}: the guest has to reset the device"));
                    events.fail();
                    break;
                }
                wait(queue.kick());
            }
            handler
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

    /// Waits for its end, and answers the handler; `None` if that panicked.
    pub fn join(mut self) -> Option<H> {
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl<H> Drop for QueueThread<H> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.store(true, Ordering::Release);
            let _ = self.kick.write(1);
            let _ = thread.join();
        }
    }
}

/// The threads of a device with one for each queue that works.
#[derive(Debug)]
pub struct QueueThreads<H>(BTreeMap<u16, QueueThread<H>>);

impl<H> Default for QueueThreads<H> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<H: QueueHandler> QueueThreads<H> {
    /// Adds the thread of a queue.
    pub fn add(&mut self, queue: u16, thread: QueueThread<H>) {
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

/// Waits for a notification.
fn wait(kick: &EventFd) {
    let mut count = 0u64;
    // SAFETY: the eventfd is open and `count` is the 8 bytes that a read of it fills (eventfd(2)). An
    // interrupted read counts as a notification.
    unsafe { libc::read(kick.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
}
