//! How other threads wake the event loop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// An eventfd that the event loop polls.
#[derive(Debug)]
pub struct Waker {
    event: EventFd,
    stopped: AtomicBool,
}

impl Waker {
    /// One that isn't signalled.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { event, stopped: AtomicBool::new(false) })
    }

    /// Tells the loop that a vCPU has ended the run.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake();
    }

    /// Has the loop check what there is to do.
    pub fn wake(&self) {
        // Fails only if it is signalled already, 2^64 times.
        let _ = self.event.write(1);
    }

    /// Clears the signal. Whether a vCPU has ended the run, or its guest's life.
    pub fn acknowledge(&self) -> bool {
        let _ = self.event.read();
        self.stopped.swap(false, Ordering::AcqRel)
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
