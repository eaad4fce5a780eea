//! The thread that waits for what the kernel tells of rings.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

use super::super::device_events::DeviceEvents;
use crate::ratelimit::LogLimit;

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
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts a thread called `name` (at most 15 bytes) that waits for a signal of `errors`, and for
    /// `notice` where there is one.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub(in super::super) fn start(
        name: &str,
        errors: EventFd,
        events: Arc<DeviceEvents>,
        log: Arc<LogLimit>,
        mut notice: Option<Box<dyn Notice>>,
    ) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            loop {
                match wait(&stopped, &errors, notice.as_deref()) {
                    Woken::Stop => return,
                    Woken::Error => break,
                    Woken::Notice => drop(notice.take_if(|notice| !notice.take())),
                }
            }
            log.warn(format_args!("its rings are broken: the guest has to reset the device"));
            events.fail();
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
    let mut entries = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    loop {
        // SAFETY: `entries` has three entries.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), 3, -1) };
        match entries.map(|entry| ready > 0 && entry.revents != 0) {
            [true, ..] => return Woken::Stop,
            [_, true, _] => return Woken::Error,
            [_, _, true] => return Woken::Notice,
            _ if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => {
                return Woken::Stop;
            }
            _ => {}
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
            let watch = Watch::start("test", errors, events.clone(), log.clone(), None).unwrap();
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
