//! A machine that runs, as the event loop has it.

use std::sync::Arc;
use std::time::Instant;

use devices::stop;

use super::machine::Machine;
use super::restart::Restart;
use super::vcpus::{VcpuContext, VcpuThreads};
use crate::error::Error;
use crate::exit_reason::ExitReason;
use crate::stats::Recorder;
use crate::steering::Steering;

/// A machine with its running vCPUs.
pub struct Steered<'a> {
    machine: &'a mut Machine,
    threads: VcpuThreads,
    context: Arc<VcpuContext>,
    restart: Option<Restart>,
    recorder: Option<Arc<Recorder>>,
}

impl<'a> Steered<'a> {
    /// This machine, whose guest may begin anew if there is what it needs for that.
    pub fn new(
        machine: &'a mut Machine,
        threads: VcpuThreads,
        context: Arc<VcpuContext>,
        restart: Option<Restart>,
        recorder: Option<Arc<Recorder>>,
    ) -> Self {
        Self { machine, threads, context, restart, recorder }
    }

    /// Ends the vCPUs.
    pub fn end(self) {
        // A vCPU that waits for a server's answer can't be stopped.
        self.machine.assigned().shorten_deadline();
        drop(self.threads);
    }

    /// Has the guest begin anew.
    #[cold]
    fn begin_anew(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        if !self.threads.hold(|| stop::check().is_err()) {
            // What asked for the end is heard next.
            return Ok(());
        }
        let Some(restart) = &mut self.restart else { return Ok(()) };
        // Those of others than who asked for it, which stand still, too.
        let _ = self.context.take_exit_reason();
        self.machine.reset(restart)?;
        for vcpu in self.threads.vcpus() {
            vcpu.reset()?;
            if vcpu.index() == 0 {
                vcpu.set_boot_registers(restart.registers())?;
            }
        }
        self.machine.arm()?;
        let took = started.elapsed();
        restart.note(took.as_millis());
        self.recorder.iter().for_each(|recorder| recorder.count_restart(took));
        self.threads.release();
        Ok(())
    }
}

impl Steering for Steered<'_> {
    fn vcpu_ended(&mut self, may_restart: bool) -> Option<ExitReason> {
        let reason = self.context.take_exit_reason()?;
        if !matches!(reason, ExitReason::Reset) || !may_restart || self.restart.is_none() {
            return Some(reason);
        }
        self.begin_anew().err().map(ExitReason::Failed)
    }
}
