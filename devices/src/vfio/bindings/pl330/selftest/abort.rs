//! Transfers that must fail: where nothing is mapped, the controller aborts.

use std::time::Instant;

use super::super::program::Transfer;
use super::super::quiesce::stop;
use super::super::registers::{FSRC, INTMIS, fault, ftr};
use super::{Driver, MAX_LATE, STOP_TIMEOUT, StepError};
use crate::vfio::region::{AccessError, RegisterAccess};
use crate::vfio::selftest::SelfTestError;

impl Driver<'_> {
    /// Has channel 0 copy where nothing is mapped: it must fault and raise an interrupt, and be
    /// usable again once killed.
    pub(super) fn abort(&mut self, source: u32, destination: u32) -> Result<String, StepError> {
        self.start(0, 0, Transfer { source, destination, length: 64 })?;
        let irq = self.wait_for_abort()?;
        let faulting = self.is_faulting()?;
        let why = fault(self.region.read32(ftr(0))?);
        self.recover()?;
        if let Some(irq) = irq {
            self.test.interrupts().unmask(irq)?;
        }
        match (irq, faulting) {
            (Some(irq), true) if self.is_of_one_event(irq) => {
                Err(format!("it raised interrupt {irq}, which is an event's: {why}").into())
            }
            (Some(irq), true) => {
                self.transfer(0, 0, (64, 0, 0))?;
                Ok(format!("interrupt {irq}, {why}; the channel works again"))
            }
            (None, true) => Err(format!("it faulted without an interrupt: {why}").into()),
            (_, false) => {
                let what = "it went on as if the memory were there: bus errors don't reach it";
                Err(what.to_owned().into())
            }
        }
    }

    /// Waits for the interrupt of the abort, and returns it. The transfer's own event, should it come
    /// to that, is as good; an interrupt signalled after its end (see
    /// [`take_interrupt`](Self::take_interrupt)) is ignored.
    fn wait_for_abort(&mut self) -> Result<Option<usize>, StepError> {
        let deadline = Instant::now() + self.timeout;
        let mut last = None;
        for _ in 0..MAX_LATE {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(irq) = self.test.interrupts().wait(left)? else { return Ok(None) };
            let ended = self.region.read32(INTMIS)? & self.events_of(irq) != 0;
            if ended || self.is_faulting()? && !self.is_of_one_event(irq) {
                return Ok(Some(irq));
            }
            self.late += 1;
            self.test.interrupts().unmask(irq)?;
            last = Some(irq);
        }
        Ok(last)
    }

    /// Whether channel 0 has aborted.
    fn is_faulting(&self) -> Result<bool, AccessError> {
        Ok(self.region.read32(FSRC)? & 1 != 0)
    }

    /// Whether an interrupt is one event's rather than that of all of them and of aborts.
    fn is_of_one_event(&self, irq: usize) -> bool {
        self.event_irqs.contains(&irq) && self.event_irqs.iter().any(|other| *other != irq)
    }

    /// Stops what runs and clears what is pending, so that the next step begins afresh.
    pub(super) fn recover(&mut self) -> Result<(), SelfTestError> {
        stop(&*self.region, STOP_TIMEOUT)?;
        self.enable_events()?;
        self.test.interrupts().take_all()
    }
}
