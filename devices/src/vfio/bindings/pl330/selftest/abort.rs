//! Transfers that must fail: where nothing is mapped, the controller aborts.

use std::time::{Duration, Instant};

use super::super::copy::Copy;
use super::super::quiesce::quiesce;
use super::super::registers::{FSRC, INTMIS, fault, ftr};
use super::buffers::MARGIN;
use super::{Driver, LATE_MAX, STOPPING, TestFailure};
use crate::vfio::region::{AccessError, RegisterAccess};
use crate::vfio::selftest::SelfTestError;

impl Driver<'_> {
    /// Has channel 0 copy where nothing is mapped: it must fault and raise an interrupt, and be
    /// usable again once killed.
    pub(super) fn abort(&mut self, source: u32, destination: u32) -> Result<String, TestFailure> {
        let copy = Copy { source, destination, length: 64 };
        self.stage.spoil(MARGIN, MARGIN, 64);
        self.start(0, 0, copy)?;
        let line = self.wait_for_abort()?;
        let faulting = self.is_faulting()?;
        let why = fault(self.region.read32(ftr(0))?);
        self.recover()?;
        if let Some(line) = line {
            self.unmask(line)?;
        }
        match (line, faulting) {
            (Some(line), true) if self.is_an_event_s(line) => Err(TestFailure::Device(format!(
                "it raised interrupt {line}, which is an event's: {why}"
            ))),
            (Some(line), true) => {
                self.transfer(0, 0, (64, 0, 0))?;
                Ok(format!("interrupt {line}, {why}; the channel works again"))
            }
            (None, true) => {
                Err(TestFailure::Device(format!("it faulted without an interrupt: {why}")))
            }
            (_, false) => Err(TestFailure::Device(
                "it went on as if the memory were there: bus errors don't reach it".into(),
            )),
        }
    }

    /// Waits for the interrupt of the abort, and returns its line. The transfer's own event, should
    /// it come to that, is as good; one told after its end (see
    /// [`take_interrupt`](Self::take_interrupt)) is passed over.
    fn wait_for_abort(&mut self) -> Result<Option<usize>, TestFailure> {
        let deadline = Instant::now() + self.patience;
        let mut last = None;
        for _ in 0..LATE_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(line) = self.test.lines().wait(left)? else { return Ok(None) };
            let ended = self.region.read32(INTMIS)? & self.events_of(line) != 0;
            if ended || self.is_faulting()? && !self.is_an_event_s(line) {
                return Ok(Some(line));
            }
            self.late += 1;
            self.unmask(line)?;
            last = Some(line);
        }
        Ok(last)
    }

    /// Whether channel 0 has aborted.
    fn is_faulting(&self) -> Result<bool, AccessError> {
        Ok(self.region.read32(FSRC)? & 1 != 0)
    }

    /// Whether a line is one event's rather than that of all of them and of aborts.
    fn is_an_event_s(&self, line: usize) -> bool {
        self.lines.contains(&line) && self.lines.iter().any(|other| *other != line)
    }

    /// Stops what runs and clears what is pending, so that the next try begins afresh.
    pub(super) fn recover(&mut self) -> Result<(), SelfTestError> {
        quiesce(&*self.region, STOPPING)?;
        self.enable_events()?;
        // Each at most once: a line that is stuck would be told again and again.
        for _ in 0..self.test.lines().iter().count() {
            if let Some(line) = self.test.lines().wait(Duration::ZERO)? {
                self.unmask(line)?;
            }
        }
        Ok(())
    }
}
