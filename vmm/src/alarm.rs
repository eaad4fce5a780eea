//! The guest's RTC wakes it: by a timer of the event loop's, which is made when a guest first asks
//! for an alarm.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use devices::irq::IrqLine;
use devices::rtc::{self, Rtc};
use devices::sync;

use crate::waker::Waker;

/// No alarm is asked for.
const NO_ALARM: u64 = u64::MAX;

/// The RTC, and when it is to be called.
pub struct AlarmClock {
    rtc: Arc<Mutex<Rtc>>,
    at: Arc<AtomicU64>,
    timer: Option<Timer>,
}

impl AlarmClock {
    /// An RTC with this interrupt line, which wakes the event loop by `waker` when it asks for an alarm.
    pub fn new(line: Box<dyn IrqLine>, waker: &Arc<Waker>) -> Self {
        let at = Arc::new(AtomicU64::new(NO_ALARM));
        let request = Box::new(Request { at: at.clone(), waker: waker.clone() });
        Self { rtc: Arc::new(Mutex::new(Rtc::new(line, request))), at, timer: None }
    }

    /// The RTC, for the bus.
    pub fn rtc(&self) -> Arc<Mutex<Rtc>> {
        self.rtc.clone()
    }

    /// The waker was signalled: sets the timer if an alarm was asked for. What to listen to, if that
    /// was made now.
    pub fn arm_timer(&mut self) -> Option<RawFd> {
        let at = self.at.swap(NO_ALARM, Ordering::AcqRel);
        if at == NO_ALARM {
            return None;
        }
        let made = self.timer.is_none();
        let timer = match self.timer.take().map_or_else(Timer::new, Ok) {
            Ok(timer) => self.timer.insert(timer),
            Err(error) => {
                log::error!("the guest's RTC has no alarm: there is no timer for it: {error}");
                return None;
            }
        };
        timer.set(at);
        made.then(|| timer.as_raw_fd())
    }

    /// The timer has run out, or the host's time was changed.
    pub fn handle_timer(&mut self) {
        if let Some(timer) = &mut self.timer {
            timer.acknowledge();
        }
        sync::lock(&self.rtc).expire();
    }
}

/// How the RTC asks for an alarm, in a vCPU's thread.
struct Request {
    at: Arc<AtomicU64>,
    waker: Arc<Waker>,
}

impl rtc::Alarm for Request {
    fn set(&mut self, at: u64) {
        self.at.store(at.min(NO_ALARM - 1), Ordering::Release);
        self.waker.wake();
    }
}

/// A timer by the host's real time, which runs out as well when that is changed
/// (`timerfd_create(2)`, TFD_TIMER_CANCEL_ON_SET).
struct Timer(File);

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: takes numbers; returns a descriptor of ours or -1.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Has it run out at this time, in seconds since 1970.
    fn set(&self, at: u64) {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // Not 0, which would stop it.
        let at = libc::timespec { tv_sec: i64::try_from(at).unwrap_or(i64::MAX).max(1), ..none };
        let once = libc::itimerspec { it_interval: none, it_value: at };
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // SAFETY: reads one `itimerspec`; the null pointer asks for nothing back.
        let returned = unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), flags, &raw const once, std::ptr::null_mut())
        };
        if returned != 0 {
            log::error!("the RTC's alarm can't be set: {}", io::Error::last_os_error());
        }
    }

    /// Takes notice that it has run out.
    fn acknowledge(&mut self) {
        // ECANCELED where the host's time was changed.
        let _ = self.0.read(&mut [0; 8]);
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
