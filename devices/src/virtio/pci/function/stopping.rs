//! How a device is stopped by the VMM: at the end of a run, or for a guest that begins anew.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::{State, VirtioFunction};

/// How long is waited for a device to stop, or at the end of a run for all of them.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

impl VirtioFunction {
    /// Asks the device to stop, which its [release](Self::release) waits for.
    pub fn begin_release(&mut self) {
        if self.state != State::Idle {
            self.device.stop();
        }
    }

    /// Stops the device, at the end of the run. One that hasn't stopped at the deadline, since the host
    /// doesn't end an access of its, is left as it is: nothing waits for it any more, and it ends with the
    /// process.
    pub fn release(&mut self, deadline: Instant) {
        if !self.stop(deadline) {
            log::warn!(
                "{}: it still works on a request, which the run's end doesn't wait for: its storage \
                 or its peer hangs",
                self.name
            );
        }
    }

    /// Stops the device, for a guest that begins anew and runs not: all registers are as after power-up.
    ///
    /// # Errors
    ///
    /// It still works on a request (`TimedOut`).
    #[cold]
    pub fn restart(&mut self) -> io::Result<()> {
        if !self.stop(Instant::now() + STOP_TIMEOUT) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.reset_function();
        self.interrupts.set_pin_disabled(false);
        self.interrupts.forget();
        Ok(())
    }

    /// Stops the device, and answers whether it has by the deadline. It isn't waited for a second time.
    pub(super) fn stop(&mut self, deadline: Instant) -> bool {
        if self.state == State::Idle {
            return true;
        }
        self.device.stop();
        while !self.device.is_stopped() {
            if self.is_given_up || Instant::now() > deadline {
                self.is_given_up = true;
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.is_given_up = false;
        self.state = State::Idle;
        true
    }
}
