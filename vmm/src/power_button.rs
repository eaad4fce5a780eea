//! The guest's power button, which a signal presses for a guest that is to end by itself.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::gpio::Gpio;
use devices::irq::IrqLine;
use devices::sync;
use vmm_sys_util::timerfd::TimerFd;

use crate::error::Error;

/// How long it is pressed at least: drivers look at it some milliseconds after its interrupt.
const PRESSED: Duration = Duration::from_millis(200);

/// A power button, and how long a guest has to end when it was pressed.
pub struct PowerButton {
    gpio: Arc<Mutex<Gpio>>,
    grace: Duration,
    timer: TimerFd,
    /// When the time is over, once it was pressed.
    end: Option<Instant>,
}

impl PowerButton {
    /// One that is released, on a GPIO controller with this interrupt line.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors.
    #[cold]
    pub fn new(line: Box<dyn IrqLine>, grace: Duration) -> Result<Self, Error> {
        let timer = TimerFd::new().map_err(|e| Error::new(format!("no timer for --grace: {e}")))?;
        Ok(Self { gpio: Arc::new(Mutex::new(Gpio::new(line))), grace, timer, end: None })
    }

    /// The GPIO controller, for the bus.
    pub fn gpio(&self) -> Arc<Mutex<Gpio>> {
        self.gpio.clone()
    }

    /// Whether it was pressed.
    pub fn is_pressed(&self) -> bool {
        self.end.is_some()
    }

    /// How long the guest has to end.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Presses it, for the guest to end.
    #[cold]
    pub fn press(&mut self) {
        self.end = Some(Instant::now() + self.grace);
        sync::lock(&self.gpio).set_power_button(true);
        self.set_timer();
    }

    /// The timer has run out: releases it once the guest has seen it. Whether the guest's time is over.
    #[cold]
    pub fn handle_timer(&mut self) -> bool {
        // It has run out, and so can be read.
        let _ = self.timer.wait();
        let mut gpio = sync::lock(&self.gpio);
        let seen = gpio.has_seen_power_button();
        if seen {
            gpio.set_power_button(false);
        }
        drop(gpio);
        if self.end.is_some_and(|end| end <= Instant::now()) {
            log::warn!("{}", self.text(seen));
            return true;
        }
        self.set_timer();
        false
    }

    /// Sets the timer to the next look at the button, or to the end of the guest's time.
    fn set_timer(&mut self) {
        let left = self.end.map(|end| end.saturating_duration_since(Instant::now()));
        // 0 would stop it.
        let wait = left.unwrap_or_default().clamp(Duration::from_millis(1), PRESSED);
        if let Err(e) = self.timer.reset(wait, None) {
            log::error!("the guest's time after its power button (--grace) has no timer: {e}");
        }
    }

    /// What is said of a guest that didn't end.
    fn text(&self, seen: bool) -> String {
        let after = format!(
            "the guest still ran {} s after its power button was pressed (--grace)",
            self.grace.as_secs_f64()
        );
        if seen {
            return format!("{after}: nothing in it acts on KEY_POWER, or that takes longer");
        }
        format!(
            "{after}, and never saw it: does its kernel have CONFIG_GPIO_PL061 and CONFIG_KEYBOARD_GPIO?"
        )
    }
}

impl AsRawFd for PowerButton {
    /// The timer.
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
