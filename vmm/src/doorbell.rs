//! How other threads call the event loop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// An event that the loop listens to, and what it may mean.
#[derive(Debug)]
pub struct Doorbell {
    event: EventFd,
    stopped: AtomicBool,
}

impl Doorbell {
    /// A bell that nobody has rung.
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
        self.call();
    }

    /// Has the loop look at whatever there is.
    pub fn call(&self) {
        // Fails only if it has been rung 2^64 times and not heard: it will be.
        let _ = self.event.write(1);
    }

    /// Takes notice; whether a vCPU has ended the run.
    pub fn hear(&self) -> bool {
        let _ = self.event.read();
        self.stopped.load(Ordering::Acquire)
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
