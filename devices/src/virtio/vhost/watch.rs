//! The thread that waits for what the kernel tells of rings.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::super::device_events::DeviceEvents;
use crate::poll;
use crate::ratelimit::LogLimit;
use crate::task_thread::{Task, TaskThread};
use crate::thread_kind::ThreadKind;

/// Something else that is waited for.
pub(in super::super) trait Notice: Send {
    /// What becomes readable.
    fn fd(&self) -> BorrowedFd<'_>;

    /// It is readable: takes what there is; whether more is waited for.
    fn take(&mut self) -> bool;
}

/// Waits until the kernel finds a driver's rings broken, and fails the device then.
#[derive(Debug)]
pub(in super::super) struct Watch {
    name: &'static str,
    // Before the thread, whose task it stops.
    task: Option<Task<()>>,
    made: Option<Made>,
}

/// What it needs of the host.
#[derive(Debug)]
struct Made {
    stop: Arc<EventFd>,
    errors: Arc<EventFd>,
    thread: TaskThread,
}

impl Watch {
    /// One whose thread will be called `name` (at most 15 bytes).
    pub(in super::super) fn new(name: &'static str) -> Self {
        Self { name, task: None, made: None }
    }

    /// Makes what it needs of the host, if it isn't made.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub(in super::super) fn prepare(&mut self) -> io::Result<()> {
        self.made().map(|_| ())
    }

    fn made(&mut self) -> io::Result<&Made> {
        let made = match self.made.take() {
            Some(made) => made,
            None => {
                let event = || EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map(Arc::new);
                let thread = TaskThread::start(ThreadKind::Vhost, self.name, None)?;
                Made { stop: event()?, errors: event()?, thread }
            }
        };
        Ok(self.made.insert(made))
    }

    /// What the kernel is to signal when rings are broken.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub(in super::super) fn errors(&mut self) -> io::Result<&EventFd> {
        Ok(&self.made()?.errors)
    }

    /// Begins to wait, for `notice` too where there is one.
    ///
    /// # Errors
    ///
    /// It does already, or the host has no more threads or descriptors.
    pub(in super::super) fn start(
        &mut self,
        events: Arc<DeviceEvents>,
        log: Arc<LogLimit>,
        mut notice: Option<Box<dyn Notice>>,
    ) -> io::Result<()> {
        let made = self.made()?;
        // Of the last time; nothing is there to be read if all was well.
        let _ = (made.stop.read(), made.errors.read());
        let (stop, errors) = (made.stop.clone(), made.errors.clone());
        let task = made.thread.run(move || {
            loop {
                match wait(&stop, &errors, notice.as_deref()) {
                    Woken::Stop => return,
                    Woken::Error => break,
                    Woken::Notice => drop(notice.take_if(|notice| !notice.take())),
                }
            }
            log.warn(format_args!("its rings are broken: the guest has to reset the device"));
            events.fail();
        })?;
        self.task = Some(task);
        Ok(())
    }

    /// Whether it was started, and not found to be stopped since.
    pub(in super::super) fn is_started(&self) -> bool {
        self.task.is_some()
    }

    /// Asks it to stop.
    pub(in super::super) fn stop(&self) {
        if let Some(made) = self.made.as_ref().filter(|_| self.is_started()) {
            // Fails only while as many signals are pending as the counter holds.
            let _ = made.stop.write(1);
        }
    }

    /// Whether it doesn't wait any more.
    pub(in super::super) fn is_stopped(&mut self) -> bool {
        if self.task.as_ref().is_some_and(Task::is_finished) {
            self.task = None;
        }
        self.task.is_none()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What has come.
enum Woken {
    Stop,
    Error,
    Notice,
}

/// Waits for the first of these.
fn wait(stop: &EventFd, errors: &EventFd, notice: Option<&dyn Notice>) -> Woken {
    // A negative descriptor is ignored (poll(2)).
    let notice = notice.map_or(-1, |notice| notice.fd().as_raw_fd());
    let fds = [stop.as_raw_fd(), errors.as_raw_fd(), notice];
    let mut entries = fds.map(poll::readable);
    loop {
        // One that has failed has found nothing.
        let _ = poll::wait(&mut entries, None);
        match entries.map(|entry| entry.revents != 0) {
            [true, ..] => return Woken::Stop,
            [_, true, _] => return Woken::Error,
            [_, _, true] => return Woken::Notice,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_rings_fail_the_device_and_a_stop_doesn_t() {
        let log = Arc::new(LogLimit::new("test"));
        let mut watch = Watch::new("test");
        for broken in [true, false, true] {
            let changed = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).unwrap();
            let events = Arc::new(DeviceEvents::new(changed.try_clone().unwrap()));
            let signal = watch.errors().unwrap().try_clone().unwrap();
            watch.start(events.clone(), log.clone(), None).unwrap();
            assert!(watch.is_started());
            if broken {
                signal.write(1).unwrap();
            } else {
                watch.stop();
            }
            while !watch.is_stopped() {
                std::thread::yield_now();
            }
            assert_eq!((events.needs_reset(), changed.read().is_ok()), (broken, broken));
        }
    }

    #[test]
    fn one_that_waits_ends_when_it_is_dropped() {
        let mut watch = Watch::new("test");
        let changed = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).unwrap();
        let events = Arc::new(DeviceEvents::new(changed));
        watch.start(events.clone(), Arc::new(LogLimit::new("test")), None).unwrap();
        drop(watch);
        assert!(!events.needs_reset());
    }
}
