//! Stopping the controller: every thread killed, no event pending, no interrupt enabled.

use std::time::Duration;

use super::super::primecell::check_part;
use super::program::{Instruction, Thread};
use super::registers::{
    CR0, DBGCMD, DBGINST0, DBGINST1, DBGSTATUS, DSR, INT_EVENT_RIS, INTCLR, INTEN, INTMIS,
    ThreadState, channels, csr, events,
};
use crate::vfio::quiesce::{QuiesceError, poll_timeout};
use crate::vfio::region::{AccessError, RegisterAccess};

/// The part number.
const PL330: u32 = 0x330;

/// Stops the controller, waiting at most `timeout` for each of its threads (twice that for one
/// whose debug registers are stuck as well).
pub(super) fn stop(registers: &dyn RegisterAccess, timeout: Duration) -> Result<(), QuiesceError> {
    check_part(registers, PL330, "PL330")?;
    let configuration = registers.read32(CR0)?;
    let channels = (0..channels(configuration)).map(Thread::Channel);
    // The manager first, for it starts channels.
    let threads: Vec<Thread> = std::iter::once(Thread::Manager).chain(channels).collect();

    let dmac = Dmac { registers, timeout };
    let mut running = Vec::new();
    for thread in threads {
        if !dmac.stop_thread(thread)? {
            running.push(format!("{thread} is still in state {:#x}", dmac.status(thread)? & 0xf));
        }
    }
    dmac.clear_events(events(configuration))?;
    if let pending @ 1.. = registers.read32(INTMIS)? {
        running.push(format!("interrupts {pending:#x} are still high"));
    }
    if running.is_empty() { Ok(()) } else { Err(QuiesceError::StillActive(running.join(", "))) }
}

/// The controller, and the timeout of each of its steps.
pub(super) struct Dmac<'a> {
    pub(super) registers: &'a dyn RegisterAccess,
    pub(super) timeout: Duration,
}

impl Dmac<'_> {
    pub(super) fn status(&self, thread: Thread) -> Result<u32, AccessError> {
        self.registers.read32(match thread {
            Thread::Manager => DSR,
            Thread::Channel(number) => csr(number),
        })
    }

    /// Stops a thread; whether it stopped.
    fn stop_thread(&self, thread: Thread) -> Result<bool, AccessError> {
        let mut killed = None;
        let stopped = poll_timeout(self.timeout, || {
            let state = ThreadState::of(self.status(thread)?);
            match state {
                ThreadState::Stopped => return Ok(Some(())),
                ThreadState::Ending => killed = None,
                // Once each time it gets there: a fault may follow the first kill.
                ThreadState::Running | ThreadState::Faulting if killed != Some(state) => {
                    self.run(Instruction::KILL, thread)?;
                    killed = Some(state);
                }
                ThreadState::Running | ThreadState::Faulting => {}
            }
            Ok(None)
        });
        Ok(stopped?.is_some())
    }

    /// Has a thread run an instruction, by way of the debug registers: TRM, chapter 2, "Issuing
    /// instructions to the DMAC using the slave interface".
    pub(super) fn run(&self, instruction: Instruction, thread: Thread) -> Result<(), AccessError> {
        let ready = || Ok((self.registers.read32(DBGSTATUS)? & 1 == 0).then_some(()));
        if poll_timeout(self.timeout, ready)?.is_none() {
            // A guest can have left them stuck. Trying nevertheless does no harm, and the thread's
            // state shows whether it helped.
            log::warn!("PL330: the debug registers stay busy");
        }
        let (first, second) = instruction.for_debug(thread);
        self.registers.write32(DBGINST0, first)?;
        self.registers.write32(DBGINST1, second)?;
        self.registers.write32(DBGCMD, 0)
    }

    /// Clears all events and disables all interrupts.
    ///
    /// INTCLR acts on events whose interrupt is enabled and on no others, so those that happened
    /// are enabled first and none is afterwards. An event left pending would be taken by the next
    /// driver for one of its own: Linux' pl330 finds its interrupt high before it has set itself
    /// up.
    fn clear_events(&self, events: u32) -> Result<(), AccessError> {
        let happened = self.registers.read32(INT_EVENT_RIS)? | self.registers.read32(INTMIS)?;
        let enabled = self.registers.read32(INTEN)?;
        self.registers.write32(INTEN, (enabled | happened) & events)?;
        self.registers.write32(INTCLR, events)?;
        self.registers.write32(INTEN, 0)
    }
}

#[cfg(test)]
mod tests;
