//! The controller's interrupts: which event raises which, and waiting for them.

use std::time::{Duration, Instant};

use super::super::program::{Instruction, Thread};
use super::super::registers::{INTCLR, INTEN, INTMIS};
use super::{Driver, MAX_LATE, StepError};
use crate::vfio::region::{AccessError, RegisterAccess};

/// The same as [`TIMEOUT`](super::TIMEOUT) once an interrupt didn't come: on a broken device the next
/// ones need not be waited for as long.
const SHORT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long to wait for interrupts that nothing should raise.
const QUIET: Duration = Duration::from_millis(20);

impl Driver<'_> {
    /// Checks that no interrupt is high. One that was may be signalled late; one that is, is signalled
    /// again.
    pub(super) fn check_quiet(&mut self) -> Result<String, StepError> {
        if let Some(late) = self.test.interrupts().wait(QUIET)? {
            self.test.interrupts().unmask(late)?;
            if let Some(irq) = self.test.interrupts().wait(QUIET)? {
                return Err(format!("interrupt {irq} is high for no reason").into());
            }
            self.late += 1;
        }
        Ok(match self.late {
            0 => "none is pending".into(),
            late => format!("none is pending; {late} were signalled after their end"),
        })
    }

    /// Has the manager signal each event, and finds which interrupt it raises.
    pub(super) fn find_event_irqs(&mut self) -> Result<String, StepError> {
        for event in 0..self.events {
            self.region.write32(INTEN, 1 << event)?;
            self.dmac().run(Instruction::signal(event), Thread::Manager)?;
            let (irq, _) = self.take_interrupt(1 << event)?;
            self.event_irqs.push(irq);
        }
        self.enable_events()?;
        let irqs: Vec<String> = self.event_irqs.iter().map(ToString::to_string).collect();
        Ok(format!("{} events on interrupts {}", self.events, irqs.join(" ")))
    }

    pub(super) fn enable_events(&self) -> Result<(), AccessError> {
        self.region.write32(INTEN, u32::MAX >> (32 - u32::from(self.events.clamp(1, 32))))
    }

    /// Waits for the interrupt of one or more of the `awaited` events (a bit each), clears them and
    /// unmasks it. Returns the interrupt and those events.
    ///
    /// An interrupt may be signalled once more when it is low already: the host disables it lazily, so
    /// that it may have been on its way to another CPU when it was unmasked here. That is ignored.
    pub(super) fn take_interrupt(&mut self, awaited: u32) -> Result<(usize, u32), StepError> {
        let deadline = Instant::now() + self.timeout;
        for _ in 0..MAX_LATE {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(irq) = self.test.interrupts().wait(left)? else { break };
            let events = self.region.read32(INTMIS)? & awaited & self.events_of(irq);
            if events != 0 {
                self.region.write32(INTCLR, events)?;
                // Read back: the line must have fallen before it is unmasked.
                self.region.read32(INTMIS)?;
            } else {
                self.late += 1;
            }
            self.test.interrupts().unmask(irq)?;
            if events != 0 {
                return Ok((irq, events));
            }
        }
        self.timeout = SHORT_TIMEOUT;
        let raised = self.region.read32(INTMIS)?;
        Err(format!("events {awaited:#x} raised no interrupt of theirs (INTMIS {raised:#x})")
            .into())
    }

    /// The events that raise an interrupt, a bit each; any, as long as that isn't known.
    pub(super) fn events_of(&self, irq: usize) -> u32 {
        if self.event_irqs.len() < usize::from(self.events) {
            return u32::MAX;
        }
        let events = (0_u32..).zip(&self.event_irqs).filter(|(_, own)| **own == irq);
        events.fold(0, |mask, (event, _)| mask | 1 << event)
    }
}
