//! The controller's interrupts: which event raises which, and waiting for them.

use std::time::{Duration, Instant};

use super::super::program::{Instruction, Thread};
use super::super::registers::{INTCLR, INTEN, INTMIS};
use super::{Driver, LATE_MAX, TestFailure};
use crate::vfio::region::{AccessError, RegisterAccess};
use crate::vfio::selftest::SelfTestError;

/// The same as [`PATIENCE`](super::PATIENCE) once one didn't come: what is broken need not be waited
/// for as long each time.
const IMPATIENCE: Duration = Duration::from_millis(500);

/// How long to listen for interrupts that nothing should raise.
const QUIET: Duration = Duration::from_millis(20);

impl Driver<'_> {
    /// Checks that no line is high. One that was may be told late; one that is, is told again.
    pub(super) fn check_quiet(&mut self) -> Result<String, TestFailure> {
        let Some(late) = self.test.lines().wait(QUIET)? else {
            return Ok(self.quiet());
        };
        self.unmask(late)?;
        match self.test.lines().wait(QUIET)? {
            None => {
                self.late += 1;
                Ok(self.quiet())
            }
            Some(line) => {
                Err(TestFailure::Device(format!("interrupt {line} is high for no reason")))
            }
        }
    }

    fn quiet(&self) -> String {
        match self.late {
            0 => "none is pending".into(),
            late => format!("none is pending; {late} were told after their end"),
        }
    }

    /// Has the manager signal each event, and sees which line rises.
    pub(super) fn find_lines(&mut self) -> Result<String, TestFailure> {
        for event in 0..self.events {
            self.region.write32(INTEN, 1 << event)?;
            self.dmac().run(Instruction::signal(event), Thread::Manager)?;
            let (line, _) = self.take_interrupt(1 << event)?;
            self.lines.push(line);
        }
        self.enable_events()?;
        let lines: Vec<String> = self.lines.iter().map(ToString::to_string).collect();
        Ok(format!("{} events on interrupts {}", self.events, lines.join(" ")))
    }

    pub(super) fn enable_events(&self) -> Result<(), AccessError> {
        self.region.write32(INTEN, u32::MAX >> (32 - u32::from(self.events.clamp(1, 32))))
    }

    /// Waits for the interrupt of one or more of the `awaited` events (a bit each), clears them and
    /// unmasks their line. Returns that line and those events.
    ///
    /// A line may be told once more when it is low already: the host disables it lazily, so that it
    /// may have been on its way to another CPU when it was unmasked here. That is passed over.
    pub(super) fn take_interrupt(&mut self, awaited: u32) -> Result<(usize, u32), TestFailure> {
        let deadline = Instant::now() + self.patience;
        for _ in 0..LATE_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(line) = self.test.lines().wait(left)? else { break };
            let events = self.region.read32(INTMIS)? & awaited & self.events_of(line);
            if events != 0 {
                self.region.write32(INTCLR, events)?;
                // Read back: the line must have fallen before it is unmasked.
                self.region.read32(INTMIS)?;
                self.unmask(line)?;
                return Ok((line, events));
            }
            self.late += 1;
            self.unmask(line)?;
        }
        self.patience = IMPATIENCE;
        let raised = self.region.read32(INTMIS)?;
        Err(TestFailure::Device(format!(
            "events {awaited:#x} raised no interrupt of theirs (INTMIS {raised:#x})"
        )))
    }

    /// The events that raise a line, a bit each; any, as long as that isn't known.
    pub(super) fn events_of(&self, line: usize) -> u32 {
        if self.lines.len() < usize::from(self.events) {
            return u32::MAX;
        }
        let events = (0_u32..).zip(&self.lines).filter(|(_, own)| **own == line);
        events.fold(0, |mask, (event, _)| mask | 1 << event)
    }

    pub(super) fn unmask(&mut self, line: usize) -> Result<(), SelfTestError> {
        match self.test.lines().get(line) {
            // An edge is not masked.
            Some(line) if line.info().automasked => line.unmask(),
            _ => Ok(()),
        }
    }
}
