//! How a device is stopped by the VMM: at the end of a run, or for a guest that begins anew.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::{State, VirtioFunction};

/// How long is waited for a device to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

impl VirtioFunction {
    /// Stops the device, at the end of the run.
    pub fn release(&mut self) {
        if !self.stop() {
            log::warn!("{}: it still works on a request after {STOP_TIMEOUT:?}", self.name);
        }
    }

    /// Stops the device, for a guest that begins anew and runs not: all registers are as after power-up.
    ///
    /// # Errors
    ///
    /// It still works on a request (`TimedOut`).
    #[cold]
    pub fn restart(&mut self) -> io::Result<()> {
        if !self.stop() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.reset_function();
        self.interrupts.set_pin_disabled(false);
        self.interrupts.forget();
        Ok(())
    }

    /// Stops the device, and answers whether it has within its time.
    fn stop(&mut self) -> bool {
        if self.state == State::Idle {
            return true;
        }
        self.device.stop();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !self.device.is_stopped() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.state = State::Idle;
        true
    }
}
