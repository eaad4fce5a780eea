//! `strait run`: plan, build, run, end.

mod build;
mod debugging;
mod hold;
mod irqfds;
mod machine;
mod pci_host;
mod restart;
mod steered;
mod vcpus;

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Instant;

use boot::kernel::Kernel;

use self::debugging::Debugged;
use self::machine::Machine;
use self::restart::Restart;
use crate::assigned::AssignedDevices;
use crate::cli::{OnReset, RunOptions, SandboxMode};
use crate::commands::print::print;
use crate::console::{ConsoleBackend, InputSource, Monitor};
use crate::console_timeout::ConsoleTimeout;
use crate::control::Control;
use crate::device_monitor::DeviceMonitor;
use crate::error::Error;
use crate::events::Sources;
use crate::exit_reason::ExitReason;
use crate::flash::FlashPlan;
use crate::function_loss::{Closing, FunctionLosses};
use crate::limits::{self, UnpinnedMemory};
use crate::machined::Registration;
use crate::notify::Notifier;
use crate::plan::describe::Description;
use crate::plan::{self, MachinePlan, Opened};
use crate::sandbox::{self, Sandbox, seccomp};
use crate::signals::Signals;
use crate::stats::Recorder;
use crate::supervisor::{Process, Resources, VmmResources};
use crate::trace::Tracer;
use crate::waker::Waker;
use crate::{inherited_files, junit, output, stats};

/// Runs a guest to its end, and answers the exit status.
///
/// # Errors
///
/// What the options ask for can't be done, or the host failed on the way.
pub fn run(options: &RunOptions) -> Result<u8, Error> {
    let started = Instant::now();
    output::init_log(options.log_level);
    sandbox::check_user(options.user)?;
    // From here on a signal ends the run in order, and drivers are bound again.
    let mut signals =
        Signals::new().map_err(|e| Error::new(format!("signals can't be waited for: {e}")))?;
    let resources = Resources::acquire(options);
    let process = resources
        .and_then(|(resources, for_vmm)| resources.supervise(options, for_vmm, &mut signals));
    let mut report = None;
    let result = match process {
        Ok(Process::Supervisor(exit_status)) => return Ok(exit_status),
        Ok(Process::Vmm(resources)) => {
            report.clone_from(&resources.report);
            run_guest(options, started, resources, &mut signals)
        }
        Err(error) => {
            if let Err(error) = junit::write_failed(options, started, &error) {
                log::error!("{}", error.log_text());
            }
            Err(error)
        }
    };
    // What was given up because of a signal ended by that signal.
    let result = result.or_else(|error| signals.end().map(ExitReason::Signal).ok_or(error));
    output::finish_console(!result.as_ref().is_ok_and(ExitReason::is_by_guest));
    if let Some(report) = &report {
        report.conclude(&result);
    }
    let reason = result?;
    if let Some(message) = reason.message() {
        output::say(&format!("strait: {message}\n"));
    }
    Ok(reason.exit_status())
}

/// Plans, builds and runs the machine; nothing of it is left when this returns.
fn run_guest(
    options: &RunOptions,
    started: Instant,
    resources: VmmResources,
    signals: &mut Signals,
) -> Result<ExitReason, Error> {
    let VmmResources { backends, statistics, report, control } = resources;
    let (plan, mut opened) = plan::resolve(options, backends)?;
    let parts = build::vm(&plan)?;
    build::firmware(options, &mut opened, &parts.vm)?;
    // Never dropped: that takes as long as opening the kernel, and the process ends with the run.
    let seed = build::seed()?;
    let tree = build::tree(&plan, &opened, &parts, &seed).map(ManuallyDrop::new)?;
    let dtb = build::dtb(&tree)?;
    if let Some(path) = &options.dump_dtb {
        build::dump_dtb(path, &dtb)?;
    }
    if options.dry_run {
        let description = Description::of(&plan, &opened, build::facts(&parts), &tree)
            .with_debugger(options.gdb.as_ref());
        let pinned = opened.assigned.iommu.is_some() || !opened.assigned.obstacles.is_empty();
        if !pinned && !plan.pages.are_reserved() {
            limits::warn_unpinned(plan.ram.size);
        }
        print(options.json, &description)?;
        return Ok(ExitReason::DryRun);
    }
    if let Some(path) = &options.stats {
        stats::check_path(path)?;
    }
    let control = control.map(Control::new);
    let description = control.as_ref().map(|_| {
        let description = Description::of(&plan, &opened, build::facts(&parts), &tree);
        serde_json::to_string(&description).unwrap_or_default()
    });
    let notifier = Notifier::from_environment();
    let waker = Arc::new(Waker::new()?);
    let console_monitor = Monitor::new(options, started, report, &waker)?;
    let open = |kind, name| ConsoleBackend::open(kind, name, console_monitor.as_ref());
    let console = open(&plan.console, "serial")?;
    let virtio_console = open(&plan.virtio_console, "virtio")?;
    let Opened { kernel, flash, initrd, assigned, virtio, traces } = opened;
    let is_linux = kernel.as_ref().is_some_and(Kernel::is_linux);
    let shortage = kernel.as_ref().and_then(Kernel::shortage);
    let flash = flash.map(FlashPlan::make).transpose()?;
    let ram = build::ram(&plan, kernel.as_ref(), initrd.as_ref(), &dtb, &assigned)?;
    build::set_boot(&plan, &parts)?;
    // Only a guest that begins anew needs them again.
    let files = (options.on_reset == OnReset::Restart).then_some((kernel, initrd));
    let emulated = build::emulated_devices(&plan, console, &parts, &waker)?;
    let port = virtio.console().cloned();
    let inputs = [emulated.input, build::connect_console(virtio_console, port, &emulated.spoke)?];
    let ram_in_process = (ram.host_address(), ram.size());
    let traced = (!traces.is_empty()).then(|| Tracer::open(traces, &assigned, started));
    let (tracer, traced_lines) = traced.transpose()?.unzip();
    let mut machine =
        Machine::new(parts, ram, flash, assigned, virtio, emulated.bus, tracer.clone())?;
    let sandbox = Sandbox {
        mode: options.sandbox,
        user: options.user,
        ram: ram_in_process,
        descriptors: plan.descriptors,
        devices: machine.has_devices() || files.is_some() || control.is_some(),
    };
    let assigned = machine.assigned();
    let monitor = Arc::new(DeviceMonitor::of(assigned));
    let recorder = (statistics.is_some() || control.is_some()).then(|| {
        let (vm, vcpus, bus) = (machine.vm(), machine.vcpus(), machine.bus().clone());
        let iommu = assigned.backend();
        Arc::new(Recorder::new(statistics, started, vm, vcpus, bus, monitor.clone(), iommu))
    });
    let restart =
        files.map(|files| Restart::new(&plan, files, dtb, &seed, (machine.gic(), machine.vcpus())));
    let restart = restart.transpose()?;
    let debugged = options
        .gdb
        .as_ref()
        .map(|gdb| Debugged::prepare(gdb, monitor.clone(), machine.vm(), machine.vcpus()));
    let debugged = debugged.transpose()?;
    output::set_waker(&waker);
    let (input, clients) = InputSource::by_kind(inputs);
    let sources = Sources {
        waker,
        signals,
        timeout: plan.timeout,
        monitor: console_monitor,
        input,
        clients,
        tracer: tracer.clone(),
        traced_lines: traced_lines.flatten(),
        losses: FunctionLosses::watch(assigned, close_vfio_file(machine.vm())),
        clock: emulated.clock,
        power_button: emulated.power_button,
        control,
        description,
        notifier,
        memory: unpinned_memory(options.sandbox, assigned, &plan),
        console_timeout: (is_linux && (plan.console.is_on() || plan.virtio_console.is_on())).then(
            || {
                ConsoleTimeout::new(
                    emulated.spoke,
                    plan.console.is_on().then_some(plan.serial),
                    shortage,
                )
            },
        ),
    };
    machine.arm()?;
    monitor.keep_files(recorder.is_some());
    if let Some(recorder) = &recorder {
        recorder.begin()?;
    }
    let named = options.register.as_deref();
    let _registration = named.and_then(|name| Registration::new(name, options.vsock));
    // Everything is open, pinned and armed.
    inherited_files::close(options);
    let servers = &machine.assigned().vfio_user;
    let entered = servers.pause().and_then(|()| sandbox.enter());
    // Where that failed, they are still asked for the devices' end.
    servers.resume().and(entered)?;
    let no_thread = |e| Error::new(format!("a thread that writes to a file can't be started: {e}"));
    output::start_threads(|| seccomp::Kind::ConsoleFile.enter()).map_err(no_thread)?;
    if let Some(tracer) = &tracer {
        tracer.start(|| seccomp::Kind::ConsoleFile.enter()).map_err(no_thread)?;
    }
    let result = steered::run(&mut machine, sources, recorder, restart, debugged);
    tracer.iter().for_each(|tracer| tracer.finish());
    if result.is_ok() {
        monitor.warn_of_unused(machine.bus(), |spi| machine.gic().is_enabled(spi).ok());
    }
    // It shares the functions with the machine.
    drop(monitor);
    machine.release();
    result
}

/// What has KVM close a file of VFIO.
fn close_vfio_file(vm: &Arc<arch::Vm>) -> Closing {
    let vm = vm.clone();
    Box::new(move |file| vm.remove_vfio_file(file).map_err(|error| error.to_string()))
}

/// What tells of too little memory for RAM that isn't pinned: told now where later nothing can be read, else
/// after a start that may be measured.
fn unpinned_memory(
    sandbox: SandboxMode,
    assigned: &AssignedDevices,
    plan: &MachinePlan,
) -> Option<UnpinnedMemory> {
    if assigned.iommu.is_some() || plan.pages.are_reserved() {
        return None;
    }
    if sandbox == SandboxMode::Off {
        return Some(UnpinnedMemory::new(plan.ram.size));
    }
    limits::warn_unpinned(plan.ram.size);
    None
}
