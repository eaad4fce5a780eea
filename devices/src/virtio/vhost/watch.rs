//! The thread that waits for what the kernel tells of rings.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

use super::super::device::DeviceEvents;
use crate::ratelimit::LogLimit;

/// Waits until the kernel finds a driver's rings broken, and fails the device then.
#[derive(Debug)]
pub(in super::super) struct Watch {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts a thread called `name` (at most 15 bytes) that waits for a signal of `errors`.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub(in super::super) fn start(
        name: &str,
        errors: EventFd,
        events: Arc<DeviceEvents>,
        log: Arc<LogLimit>,
    ) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            if !wait(&stopped, &errors) {
                log.warn(format_args!("its rings are broken: the guest has to reset the device"));
                events.fail();
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Asks it to stop.
    pub(in super::super) fn stop(&self) {
        // Fails only while as many signals are pending as the counter holds.
        let _ = self.stop.write(1);
    }

    /// Whether it has ended.
    pub(in super::super) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for one of two signals; whether the first has come.
fn wait(stop: &EventFd, errors: &EventFd) -> bool {
    let entry =
        |fd: &EventFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut entries = [entry(stop), entry(errors)];
    loop {
        // SAFETY: `entries` has two entries.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
        let [stop, errors] = entries;
        if ready > 0 && (stop.revents != 0 || errors.revents != 0) {
            return stop.revents != 0;
        }
        if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eventfd() -> EventFd {
        EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn broken_rings_fail_the_device_and_a_stop_doesn_t() {
        let log = Arc::new(LogLimit::new("test"));
        for broken in [true, false] {
            let (errors, changed) = (eventfd(), eventfd());
            let events = Arc::new(DeviceEvents::new(changed.try_clone().unwrap()));
            let signal = errors.try_clone().unwrap();
            let watch = Watch::start("test", errors, events.clone(), log.clone()).unwrap();
            if broken {
                signal.write(1).unwrap();
                while !watch.is_finished() {
                    thread::yield_now();
                }
            }
            drop(watch);
            assert_eq!((events.needs_reset(), changed.read().is_ok()), (broken, broken));
        }
    }
}
