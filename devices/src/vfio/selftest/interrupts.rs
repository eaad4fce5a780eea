//! The interrupts of a device under test: eventfds that are waited for with a timeout.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::uapi::{DeviceCalls, IoctlError, IrqAction, IrqInfo};
use super::{SelfTestError, StepError};
use crate::poll;

/// How often an interrupt may be signalled late while a cause is waited for; more is an interrupt that
/// is stuck.
const MAX_LATE: u32 = 64;

/// How long to wait for interrupts that nothing should raise.
const QUIET: Duration = Duration::from_millis(20);

/// All interrupts of a device, by VFIO's index. Disarmed when dropped.
#[derive(Debug)]
pub struct TestInterrupts {
    device: Arc<dyn DeviceCalls>,
    all: Vec<(IrqInfo, EventFd)>,
    /// The indices of those that VFIO signals.
    armed: Vec<u32>,
}

impl TestInterrupts {
    /// The first `count` of this device.
    pub(super) fn open(device: &Arc<dyn DeviceCalls>, count: u32) -> Result<Self, SelfTestError> {
        let open = |index| {
            let info = device.irq_info(index).map_err(SelfTestError::Info)?;
            let eventfd = eventfd()
                .map_err(|error| SelfTestError::Interrupt("create an eventfd for", index, error))?;
            Ok::<_, SelfTestError>((info, eventfd))
        };
        let all = (0..count).map(open).collect::<Result<_, _>>()?;
        Ok(Self { device: device.clone(), all, armed: Vec::new() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Arms all that can signal an eventfd.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn arm(&mut self) -> Result<(), SelfTestError> {
        for (index, (info, eventfd)) in (0..).zip(&self.all) {
            if info.eventfd {
                self.set(index, "arm", IrqAction::SetTrigger(eventfd))?;
                self.armed.push(index);
            }
        }
        Ok(())
    }

    /// Masks and unmasks each that can be masked; how many these are.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub(super) fn mask_and_unmask(&self) -> Result<usize, SelfTestError> {
        let maskable = (0..).zip(&self.all).filter(|(_, (info, _))| info.maskable);
        maskable.clone().try_for_each(|(index, _)| {
            self.set(index, "mask", IrqAction::Mask)?;
            self.set(index, "unmask", IrqAction::Unmask)
        })?;
        Ok(maskable.count())
    }

    /// Unmasks a level-triggered interrupt, which the host masks each time it signals it
    /// (AUTOMASKED). Nothing to do for an edge-triggered one.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn unmask(&self, index: usize) -> Result<(), SelfTestError> {
        match (u32::try_from(index), self.all.get(index)) {
            (Ok(index), Some((info, _))) if info.automasked => {
                self.set(index, "unmask", IrqAction::Unmask)
            }
            _ => Ok(()),
        }
    }

    /// Waits until one is signalled and returns its index; `None` after the timeout.
    ///
    /// # Errors
    ///
    /// The host can't wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<usize>, SelfTestError> {
        wait_any(self.all.iter().map(|(_, eventfd)| eventfd), timeout)
            .map_err(|error| SelfTestError::Interrupt("wait for", 0, error))
    }

    /// Waits until one is signalled whose cause `cause` finds, having cleared it; unmasks each. `None`
    /// after the timeout, or if none of `MAX_LATE` had one: an interrupt may be signalled once more
    /// when it is low already, since the host disables it lazily. `None` at once without time, so that who
    /// waits for several causes by one deadline ends, though a device signals without end.
    ///
    /// # Errors
    ///
    /// The host can't wait or unmask, or `cause` fails.
    pub fn wait_for<T>(
        &mut self,
        timeout: Duration,
        mut cause: impl FnMut() -> Result<Option<T>, StepError>,
    ) -> Result<Option<T>, StepError> {
        let deadline = Instant::now() + timeout;
        for _ in 0..MAX_LATE {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let Some(irq) = self.wait(left)? else { break };
            let found = cause()?;
            self.unmask(irq)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Takes what was signalled so far, and unmasks it: each at most once, for one that is stuck would be
    /// signalled again and again.
    ///
    /// # Errors
    ///
    /// The host can't wait or unmask.
    pub fn take_all(&mut self) -> Result<(), SelfTestError> {
        for _ in 0..self.count() {
            if let Some(irq) = self.wait(Duration::ZERO)? {
                self.unmask(irq)?;
            }
        }
        Ok(())
    }

    /// Checks that no interrupt is high. One that was may be signalled late; one that is, is signalled
    /// again.
    ///
    /// # Errors
    ///
    /// One is, or the host can't wait.
    pub fn check_quiet(&mut self) -> Result<String, StepError> {
        if let Some(late) = self.wait(QUIET)? {
            self.unmask(late)?;
            if let Some(irq) = self.wait(QUIET)? {
                return Err(format!("interrupt {irq} is high for no reason").into());
            }
        }
        Ok("none is pending".to_owned())
    }

    fn set(
        &self,
        index: u32,
        what: &'static str,
        action: IrqAction<'_>,
    ) -> Result<(), SelfTestError> {
        self.device
            .set_irq(index, action)
            .map_err(|IoctlError { source, .. }| SelfTestError::Interrupt(what, index, source))
    }
}

impl Drop for TestInterrupts {
    fn drop(&mut self) {
        for index in &self.armed {
            if let Err(error) = self.device.set_irq(*index, IrqAction::ClearTrigger) {
                log::error!("interrupt {index}: {error}: {}", error.source);
            }
        }
    }
}

/// A new eventfd, as VFIO takes it.
pub(super) fn eventfd() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// Waits until one of these eventfds is signalled, resets it and returns its number; `None` after the
/// timeout.
pub(super) fn wait_any<'a>(
    eventfds: impl Iterator<Item = &'a EventFd> + Clone,
    timeout: Duration,
) -> io::Result<Option<usize>> {
    let deadline = Instant::now() + timeout;
    let mut polled: Vec<libc::pollfd> =
        eventfds.clone().map(|eventfd| poll::readable(eventfd.as_raw_fd())).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll::wait(&mut polled, Some(left)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            // One that was interrupted has found nothing.
            _ => {}
        }
        let signalled = |(eventfd, polled): (&EventFd, &libc::pollfd)| {
            polled.revents & libc::POLLIN != 0 && eventfd.read().is_ok()
        };
        if let Some(number) = eventfds.clone().zip(&polled).position(signalled) {
            return Ok(Some(number));
        }
        if left.is_zero() {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Call, FakeDevice};
    use super::*;

    fn interrupts(count: u32) -> (Arc<FakeDevice>, TestInterrupts) {
        let info = IrqInfo { count: 1, eventfd: true, maskable: true, automasked: true };
        let irqs = vec![info; count as usize];
        let fake = Arc::new(FakeDevice::new(Vec::new(), irqs));
        let calls: Arc<dyn DeviceCalls> = fake.clone();
        (fake, TestInterrupts::open(&calls, count).unwrap())
    }

    #[test]
    fn a_signal_is_reported_once_with_its_index() {
        let (_, mut interrupts) = interrupts(3);
        interrupts.all[2].1.write(1).unwrap();
        assert_eq!(interrupts.wait(Duration::from_secs(60)).unwrap(), Some(2));
        assert_eq!(interrupts.wait(Duration::ZERO).unwrap(), None);
    }

    #[test]
    fn waiting_ends_at_the_timeout() {
        let (_, mut interrupts) = interrupts(1);
        let started = Instant::now();
        assert_eq!(interrupts.wait(Duration::from_millis(30)).unwrap(), None);
        let waited = started.elapsed();
        assert!((Duration::from_millis(30)..Duration::from_secs(60)).contains(&waited));
    }

    #[test]
    fn without_time_no_cause_is_found() {
        let (_, mut interrupts) = interrupts(1);
        for (timeout, expected) in [(Duration::ZERO, None), (Duration::from_secs(60), Some(()))] {
            interrupts.all[0].1.write(1).unwrap();
            let found = interrupts.wait_for(timeout, || Ok(Some(())));
            assert_eq!(found.unwrap_or_else(|_| panic!()), expected);
        }
    }

    #[test]
    fn only_armed_interrupts_are_disarmed_when_dropped() {
        let (fake, mut interrupts) = interrupts(2);
        fake.fail_at(1);
        interrupts.arm().unwrap_err();
        fake.take_calls();
        drop(interrupts);
        assert_eq!(fake.take_calls(), [Call::ClearTrigger(0)]);
    }
}
