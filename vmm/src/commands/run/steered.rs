//! A machine that runs, as the event loop has it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::stop;

use super::debugging::Debugged;
use super::machine::Machine;
use super::restart::Restart;
use super::vcpus::{VcpuContext, VcpuThreads};
use crate::error::Error;
use crate::events::{self, Sources};
use crate::exit_reason::ExitReason;
use crate::notify::Notifier;
use crate::stats::Recorder;
use crate::steering::{Outcome, Steering};

/// How long a pause waits for vCPUs to stand still. They do within a millisecond, but for one that waits for a
/// server of a device, or for room in the host's output.
const PATIENCE: Duration = Duration::from_secs(1);

/// A machine with its running vCPUs.
struct Steered<'a> {
    machine: &'a mut Machine,
    threads: VcpuThreads,
    context: Arc<VcpuContext>,
    restart: Option<Restart>,
    recorder: Option<Arc<Recorder>>,
    paused: bool,
}

/// Runs the vCPUs of a machine, once, to the end of the run, perhaps under a debugger; they are gone when this
/// returns. With a `restart` the guest begins anew when it asks for a reset.
///
/// # Errors
///
/// The host failed.
pub fn run(
    machine: &mut Machine,
    sources: Sources<'_>,
    recorder: Option<Arc<Recorder>>,
    restart: Option<Restart>,
    debugged: Option<Debugged>,
) -> Result<ExitReason, Error> {
    let gate = debugged.as_ref().map(|debugged| debugged.gate().clone());
    let context =
        machine.prepare(sources.waker.clone(), recorder.clone(), restart.is_some(), gate)?;
    let debugger = debugged.map(|debugged| {
        debugged.start(machine.memory(), machine.bus(), recorder.as_ref(), context.clone())
    });
    let debugger = debugger.transpose()?;
    let monitor = sources.monitor.clone();
    sources.notifier.iter().for_each(Notifier::ready);
    let threads = VcpuThreads::start(machine.take_vcpus(), &context)?;
    let (recorded, paused) = (recorder.clone(), false);
    let mut steered = Steered { machine, threads, context, restart, recorder: recorded, paused };
    let result = events::run(sources, recorder.as_deref(), &mut steered);
    if let Some(debugger) = debugger {
        debugger.end(result.as_ref().map_or(1, ExitReason::exit_status));
    }
    steered.end();
    let reason = match &monitor {
        Some(monitor) => monitor.conclude(result?),
        None => result?,
    };
    if let Some(Err(error)) = recorder.map(|recorder| recorder.write(Some(&reason))) {
        // Why the guest ended matters more.
        log::error!("{}", error.log_text());
    }
    match reason {
        ExitReason::Failed(error) => Err(error),
        reason => Ok(reason),
    }
}

impl Steered<'_> {
    /// Ends the vCPUs.
    fn end(self) {
        // A vCPU that waits for a server's answer can't be stopped.
        self.machine.assigned().shorten_deadline();
        drop(self.threads);
    }

    /// Has the guest, whose vCPUs may stand still already, begin anew.
    #[cold]
    fn begin_anew(&mut self) -> Outcome {
        let started = Instant::now();
        if !self.threads.hold(|| stop::check().is_err()) {
            // It is to end, and a vCPU keeps it.
            return Outcome::Over(ExitReason::Reset);
        }
        match self.context.take_exit_reason() {
            // One that was asked for meanwhile is this one.
            None | Some(ExitReason::Reset) => {}
            Some(reason) => return Outcome::Over(reason),
        }
        if let Err(error) = self.reset() {
            return Outcome::Over(ExitReason::Failed(error));
        }
        let took = started.elapsed();
        self.restart.iter_mut().for_each(|restart| restart.note(took.as_millis()));
        self.recorder.iter().for_each(|recorder| recorder.count_restart(took));
        if !self.paused {
            self.threads.release();
        }
        Outcome::BegunAnew
    }

    /// Resets the machine, whose vCPUs stand still.
    fn reset(&mut self) -> Result<(), Error> {
        let Some(restart) = &mut self.restart else { return Ok(()) };
        self.machine.reset(restart)?;
        let registers = self.context.note_reset();
        for vcpu in self.threads.vcpus() {
            vcpu.reset()?;
            if vcpu.index() == 0 {
                vcpu.set_boot_registers(restart.registers())?;
            }
        }
        drop(registers);
        self.machine.arm()
    }
}

impl Steering for Steered<'_> {
    fn vcpu_ended(&mut self, may_restart: bool) -> Outcome {
        match self.context.take_exit_reason() {
            None => Outcome::Unchanged,
            Some(ExitReason::Reset) if may_restart && self.restarts() => self.begin_anew(),
            Some(reason) => Outcome::Over(reason),
        }
    }

    fn restarts(&self) -> bool {
        self.restart.is_some()
    }

    fn restart(&mut self) -> Outcome {
        self.begin_anew()
    }

    fn pause(&mut self) -> bool {
        let begun = Instant::now();
        self.paused = self.paused || self.threads.hold(|| begun.elapsed() > PATIENCE);
        self.paused
    }

    fn resume(&mut self) {
        // A vCPU that has ended the run is heard next.
        if std::mem::take(&mut self.paused) && !self.context.has_ended() {
            self.threads.release();
        }
    }

    fn is_paused(&self) -> bool {
        self.paused
    }
}
