//! The debugger of a machine that is about to run.

use std::fmt::Write;
use std::sync::Arc;

use arch::debug::DebuggedCpu;
use arch::{Vcpu, Vm};
use devices::bus::Bus;
use vm_memory::GuestMemoryMmap;

use super::vcpus::VcpuContext;
use crate::cli::GdbOptions;
use crate::device_monitor::DeviceMonitor;
use crate::error::Error;
use crate::exit_reason::ExitReason;
use crate::gdb::{Debugger, Gate, Guest, Listener, Topic};
use crate::stats::Recorder;

/// A machine that is prepared for a debugger.
pub struct Debugged {
    listener: Listener,
    monitor: Arc<DeviceMonitor>,
    cpus: Vec<Box<dyn DebuggedCpu>>,
    gate: Arc<Gate>,
}

impl Debugged {
    /// Listens, and gives the vCPUs what a debugger stops them by. `monitor` tells it of assigned devices.
    ///
    /// # Errors
    ///
    /// Nobody can connect, or the process has no more descriptors or memory.
    #[cold]
    pub fn prepare(
        options: &GdbOptions,
        monitor: Arc<DeviceMonitor>,
        vm: &Vm,
        vcpus: &[Vcpu],
    ) -> Result<Self, Error> {
        let listener = Listener::open(options)?;
        let cpus = vcpus
            .iter()
            .map(|vcpu| vm.debugged(vcpu).map(|vcpu| Box::new(vcpu) as Box<dyn DebuggedCpu>));
        let cpus = cpus.collect::<Result<Vec<_>, _>>()?;
        let gate = Arc::new(Gate::new(cpus.len(), !listener.waits())?);
        Ok(Self { listener, monitor, cpus, gate })
    }

    /// Where the vCPUs are held up.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Starts the debugger's thread.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    #[cold]
    pub fn start(
        self,
        memory: &GuestMemoryMmap,
        bus: &Arc<Bus>,
        recorder: Option<&Arc<Recorder>>,
        context: Arc<VcpuContext>,
    ) -> Result<Debugger, Error> {
        let Self { listener, monitor, cpus, gate } = self;
        let (bus, recorder) = (bus.clone(), recorder.cloned());
        let info = move |topic| match topic {
            Topic::Devices => devices(&bus),
            Topic::Irqs => interrupts(&monitor),
            Topic::Stats => match &recorder {
                Some(recorder) => recorder.text() + "\n",
                None => "strait counts where it is started with --stats FILE\n".into(),
            },
        };
        let guest = Guest::new(cpus, memory.clone(), gate, Box::new(info));
        Debugger::start(listener, guest, move || {
            context.end(ExitReason::Quit);
        })
    }
}

/// The devices that trap, a line each.
fn devices(bus: &Bus) -> String {
    let mut text = String::new();
    for accesses in bus.accesses() {
        // A string takes what is written.
        let _ = writeln!(
            text,
            "{}: {} reads, {} writes",
            accesses.name, accesses.reads, accesses.writes
        );
    }
    text
}

/// The interrupts of assigned devices, as statistics have them.
fn interrupts(monitor: &DeviceMonitor) -> String {
    let lines = serde_json::to_string_pretty(&monitor.lines.report()).unwrap_or_default();
    let functions = serde_json::to_string_pretty(&monitor.functions.interrupts());
    format!("{lines}\n{}\n", functions.unwrap_or_default())
}
