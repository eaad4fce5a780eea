//! A device's interrupts without a guest: eventfds that are waited for with a deadline.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::uapi::{DeviceCalls, IoctlError, IrqAction, IrqInfo};
use super::SelfTestError;

/// One interrupt.
#[derive(Debug)]
pub struct TestInterrupt {
    device: Arc<dyn DeviceCalls>,
    index: u32,
    info: IrqInfo,
    eventfd: EventFd,
    armed: bool,
    /// How often it was signalled.
    count: u64,
}

impl TestInterrupt {
    /// What VFIO tells of it.
    pub fn info(&self) -> &IrqInfo {
        &self.info
    }

    /// How often it was signalled.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Lets it through.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn arm(&mut self) -> Result<(), SelfTestError> {
        self.set("arm it", IrqAction::SetTrigger(&self.eventfd))?;
        self.armed = true;
        Ok(())
    }

    /// Keeps it from being signalled.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn mask(&self) -> Result<(), SelfTestError> {
        self.set("mask it", IrqAction::Mask)
    }

    /// Lets it be signalled again: the host masks a level interrupt each time.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn unmask(&self) -> Result<(), SelfTestError> {
        self.set("unmask it", IrqAction::Unmask)
    }

    fn set(&self, what: &'static str, action: IrqAction<'_>) -> Result<(), SelfTestError> {
        let index = self.index;
        let failed =
            |error: IoctlError| SelfTestError::Interrupt { index, what, source: error.source };
        self.device.set_irq(index, action).map_err(failed)
    }
}

impl Drop for TestInterrupt {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = self.device.set_irq(self.index, IrqAction::ClearTrigger) {
            log::error!("interrupt {}: {error}: {}", self.index, error.source);
        }
    }
}

/// All interrupts of a device.
#[derive(Debug)]
pub struct TestInterrupts(Vec<TestInterrupt>);

impl TestInterrupts {
    /// Those of this device, which has `count`.
    pub(super) fn open(device: &Arc<dyn DeviceCalls>, count: u32) -> Result<Self, SelfTestError> {
        let open = |index| {
            let info = device.irq_info(index).map_err(|source| SelfTestError::Untold { source })?;
            let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                .map_err(|source| SelfTestError::Interrupt { index, what: "no eventfd", source })?;
            let device = device.clone();
            Ok(TestInterrupt { device, index, info, eventfd, armed: false, count: 0 })
        };
        (0..count).map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, TestInterrupt> {
        self.0.iter()
    }

    /// The line of this index.
    pub fn get(&self, index: usize) -> Option<&TestInterrupt> {
        self.0.get(index)
    }

    /// Lets all that can signal an eventfd through.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn arm(&mut self) -> Result<(), SelfTestError> {
        self.0.iter_mut().filter(|line| line.info.eventfd).try_for_each(TestInterrupt::arm)
    }

    /// Waits until one is signalled and returns its index; `None` once `patience` is over.
    ///
    /// # Errors
    ///
    /// The host can't wait.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<usize>, SelfTestError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(index) = self.poll(left)? {
                return Ok(Some(index));
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// Waits once; it may return early.
    fn poll(&mut self, patience: Duration) -> Result<Option<usize>, SelfTestError> {
        let watch = |line: &TestInterrupt| libc::pollfd {
            fd: line.eventfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut watched: Vec<libc::pollfd> = self.0.iter().map(watch).collect();
        // Rounded up, so that the last wait isn't one for nothing.
        let milliseconds =
            i32::try_from(patience.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let count = libc::nfds_t::try_from(watched.len()).unwrap_or(0);
        // SAFETY: the array is writable for the duration of the call, and `count` its length.
        if unsafe { libc::poll(watched.as_mut_ptr(), count, milliseconds) } < 0 {
            let source = io::Error::last_os_error();
            if source.kind() != io::ErrorKind::Interrupted {
                return Err(SelfTestError::Interrupt { index: 0, what: "wait for it", source });
            }
            return Ok(None);
        }
        for (index, (line, watched)) in self.0.iter_mut().zip(&watched).enumerate() {
            if watched.revents & libc::POLLIN != 0 && line.eventfd.read().is_ok() {
                line.count = line.count.saturating_add(1);
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Call, FakeDevice};
    use super::*;

    fn lines(count: u32) -> (Arc<FakeDevice>, TestInterrupts) {
        let info = IrqInfo { count: 1, eventfd: true, maskable: true, automasked: true };
        let irqs = vec![info; count as usize];
        let fake = Arc::new(FakeDevice::new(Vec::new(), irqs));
        let calls: Arc<dyn DeviceCalls> = fake.clone();
        (fake, TestInterrupts::open(&calls, count).unwrap())
    }

    #[test]
    fn a_signal_is_told_once_and_by_its_line() {
        let (_, mut lines) = lines(3);
        lines.get(2).unwrap().eventfd.write(1).unwrap();
        assert_eq!(lines.wait(Duration::from_secs(5)).unwrap(), Some(2));
        assert_eq!(lines.wait(Duration::ZERO).unwrap(), None);
        let counts: Vec<u64> = lines.iter().map(TestInterrupt::count).collect();
        assert_eq!(counts, [0, 0, 1]);
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let (_, mut lines) = lines(1);
        let started = Instant::now();
        assert_eq!(lines.wait(Duration::from_millis(30)).unwrap(), None);
        let waited = started.elapsed();
        assert!((Duration::from_millis(30)..Duration::from_secs(5)).contains(&waited));
    }

    #[test]
    fn lines_are_armed_in_order_and_disarmed_when_dropped() {
        let (fake, mut lines) = lines(2);
        fake.fail_at(1);
        lines.arm().unwrap_err();
        fake.take_calls();
        drop(lines);
        assert_eq!(fake.take_calls(), [Call::ClearTrigger(0)], "only what was armed");
    }
}
