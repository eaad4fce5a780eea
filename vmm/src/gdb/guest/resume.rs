//! Stopping, stepping and running.

use std::io;

use arch::debug::{Control, DebuggedCpu, MaskedStep, Register, Stop, inject_brk, read64};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::multithread::{
    MultiThreadResume, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
    MultiThreadSingleStep, MultiThreadSingleStepOps,
};

use super::points::watch_kind;
use super::{Guest, thread};

type StopReason = MultiThreadStopReason<u64>;

/// What a vCPU does when the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Continue,
    Step,
    Stay,
}

/// What each vCPU does.
pub(super) struct Actions {
    own: Vec<Option<Action>>,
    /// What those do that aren't named.
    others: Action,
}

impl Actions {
    pub(super) fn new(cpus: usize) -> Self {
        Self { own: vec![None; cpus], others: Action::Continue }
    }

    fn of(&self, index: usize) -> Action {
        self.own.get(index).copied().flatten().unwrap_or(self.others)
    }

    fn set(&mut self, thread: Tid, action: Action) {
        if let Some(own) = self.own.get_mut(thread.get().saturating_sub(1)) {
            *own = Some(action);
        }
    }
}

impl Guest {
    /// Whether vCPUs run, or may.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Stops all vCPUs. `false`: the run is over.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn pause(&mut self) -> io::Result<bool> {
        if self.is_running {
            if !self.gate.pause(&self.cpus) {
                return Ok(false);
            }
            self.is_running = false;
            for index in 0..self.cpus.len() {
                self.end_step(index)?;
            }
        }
        Ok(true)
    }

    /// Stops all vCPUs because the debugger wants it: why they have stopped; `None` if the run is over.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn interrupt(&mut self) -> io::Result<Option<StopReason>> {
        if !self.pause()? {
            return Ok(None);
        }
        // One may have stopped by itself just now.
        let own = self.next_stop()?;
        let signal = Signal::SIGINT;
        Ok(own.or(Some(StopReason::SignalWithThread { tid: thread(0), signal })))
    }

    /// Why a vCPU has stopped, if one has; all others are stopped, too, then.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn next_stop(&mut self) -> io::Result<Option<StopReason>> {
        while let Some((index, stop, resets)) = self.gate.take_stop() {
            if let Some(reason) = self.reason(index, stop, resets)? {
                return Ok(self.pause()?.then_some(reason));
            }
        }
        Ok(None)
    }

    /// Why vCPU `index` has stopped, after so many resets, for the debugger; `None` if that is the guest's own
    /// affair.
    fn reason(&mut self, index: usize, stop: Stop, resets: u64) -> io::Result<Option<StopReason>> {
        let tid = thread(index);
        let trap = StopReason::SignalWithThread { tid, signal: Signal::SIGTRAP };
        Ok(Some(match stop {
            Stop::Brk { syndrome } => {
                let gate = self.gate.clone();
                let registers = gate.registers();
                // Else it is of the guest's life before, and what it was at is gone.
                let is_there = gate.resets() == resets;
                if is_there {
                    if self.is_at_breakpoint(index)? {
                        return Ok(Some(StopReason::SwBreak(tid)));
                    }
                    self.end_own_step(index)?;
                    let Some(cpu) = self.cpus.get(index) else { return Ok(None) };
                    inject_brk(cpu.as_ref(), syndrome)?;
                }
                drop(registers);
                if !is_there || self.actions.of(index) != Action::Step {
                    if self.is_running {
                        self.gate.resume(|other| other == index);
                    }
                    return Ok(None);
                }
                trap
            }
            Stop::Breakpoint => StopReason::HwBreak(tid),
            Stop::Watchpoint(address) => {
                let points = &self.points.watchpoints;
                let nearest = points.iter().min_by_key(|point| point.distance(address));
                nearest.map_or(trap, |point| {
                    let addr = if point.distance(address) == 0 { address } else { point.address };
                    StopReason::Watch { tid, kind: watch_kind(point.access), addr }
                })
            }
            Stop::Step | Stop::Other => trap,
        }))
    }

    /// Ends the step of a vCPU that has stopped.
    fn end_step(&mut self, index: usize) -> io::Result<()> {
        let gate = self.gate.clone();
        let _registers = gate.registers();
        self.end_own_step(index)
    }

    /// The same for who has locked the registers. A reset has ended all that began before.
    fn end_own_step(&mut self, index: usize) -> io::Result<()> {
        let resets = self.gate.resets();
        if std::mem::replace(&mut self.resets, resets) != resets {
            self.steps.iter_mut().for_each(|step| *step = None);
        }
        let step = self.steps.get_mut(index).and_then(Option::take);
        step.zip(self.cpus.get(index)).map_or(Ok(()), |(step, cpu)| step.end(cpu.as_ref()))
    }

    /// Whether a vCPU is at a breakpoint in memory.
    fn is_at_breakpoint(&self, index: usize) -> io::Result<bool> {
        let Some(cpu) = self.cpus.get(index) else { return Ok(false) };
        let pc = read64(cpu.as_ref(), Register::Pc)?;
        Ok(self.translate(cpu.as_ref(), pc).is_some_and(|gpa| self.points.is_software(gpa)))
    }

    /// Where a vCPU stops.
    pub(super) fn control(&self, single_step: bool) -> Control {
        Control {
            single_step,
            brk: self.points.has_software(),
            breakpoints: self.points.hardware.clone(),
            watchpoints: self.points.watchpoints.clone(),
        }
    }

    /// What a vCPU is to do; those that run have begun with something.
    fn set_action(&mut self, thread: Tid, action: Action) {
        if !self.is_running {
            self.actions.set(thread, action);
        }
    }

    /// Has a vCPU begin with what it does, before it may.
    fn prepare(&self, index: usize, cpu: &dyn DebuggedCpu) -> io::Result<Option<MaskedStep>> {
        let action = self.actions.of(index);
        cpu.control(&self.control(action == Action::Step))?;
        let instruction = match action {
            Action::Stay => return Ok(None),
            Action::Continue => None,
            Action::Step => self.instruction(index, read64(cpu, Register::Pc)?),
        };
        cpu.proceed();
        Ok(instruction.map(|code| MaskedStep::begin(cpu, code)).transpose()?.flatten())
    }

    /// Leaves the guest as it was: it runs, and stops nowhere. Nothing if the run is over.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn release(&mut self) -> io::Result<()> {
        if !self.pause()? {
            return Ok(());
        }
        self.points.clear(&self.memory);
        self.is_physical = false;
        self.clear_resume_actions()?;
        self.resume()
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> io::Result<()> {
        if self.is_running {
            return Ok(());
        }
        let registers = self.gate.registers();
        self.resets = self.gate.resets();
        for (index, cpu) in self.cpus.iter().enumerate() {
            let step = self.prepare(index, cpu.as_ref())?;
            if let Some(own) = self.steps.get_mut(index) {
                *own = step;
            }
        }
        drop(registers);
        self.is_running = true;
        self.gate.resume(|index| self.actions.of(index) != Action::Stay);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> io::Result<()> {
        if !self.is_running {
            self.actions = Actions::new(self.cpus.len());
        }
        Ok(())
    }

    fn set_resume_action_continue(&mut self, thread: Tid, _: Option<Signal>) -> io::Result<()> {
        self.set_action(thread, Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, thread: Tid, _: Option<Signal>) -> io::Result<()> {
        self.set_action(thread, Action::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> io::Result<()> {
        if !self.is_running {
            self.actions.others = Action::Stay;
        }
        Ok(())
    }
}
