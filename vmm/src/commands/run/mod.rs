//! `strait run`: plan, build, run, end.

mod build;
mod irqfds;
mod machine;
mod pci_host;
mod vcpus;

use std::sync::Arc;
use std::time::Instant;

use self::machine::Machine;
use crate::cli::{ConsoleKind, RunOptions};
use crate::commands::device::BindGuard;
use crate::commands::print::print;
use crate::doorbell::Doorbell;
use crate::error::Error;
use crate::events::Sources;
use crate::exit_reason::ExitReason;
use crate::limits::{self, UnpinnedMemory};
use crate::lines::Lines;
use crate::plan::describe::Description;
use crate::plan::{self, Opened};
use crate::signals::Signals;
use crate::silence::Silence;
use crate::stats::Recorder;
use crate::unused::{Evidence, Unused};
use crate::{logger, output, stats};

/// Runs a guest to its end.
///
/// # Errors
///
/// What the options ask for can't be done, or the host failed on the way.
pub fn run(options: &RunOptions) -> Result<ExitReason, Error> {
    let started = Instant::now();
    logger::init(options.log_level);
    // From here on a signal ends the run in order, and drivers are bound again.
    let mut signals = Signals::new()?;
    let bind = || BindGuard::bind(&options.device_names(), options.force);
    let bound = options.bind.then(bind).transpose();
    let result = bound.and_then(|bound| {
        let result = run_guest(options, started, &mut signals);
        // Only now is everything closed that holds the devices.
        drop(bound);
        result
    });
    // What was given up because of a signal ended by that signal.
    let result = result.or_else(|error| signals.end().map(ExitReason::Signal).ok_or(error));
    output::finish_console(!result.as_ref().is_ok_and(ExitReason::is_by_guest));
    result
}

/// Plans, builds and runs the machine; nothing of it is left when this returns.
fn run_guest(
    options: &RunOptions,
    started: Instant,
    signals: &mut Signals,
) -> Result<ExitReason, Error> {
    let (plan, opened) = plan::resolve(options)?;
    let core = build::core(&plan)?;
    let tree = build::tree(&plan, &opened.assigned, &core)?;
    let dtb = build::dtb(&tree)?;
    if let Some(path) = &options.dump_dtb {
        build::dump_dtb(path, &dtb)?;
    }
    if options.dry_run {
        let description = Description::of(&plan, &opened, &build::facts(&core), &tree);
        if opened.assigned.iommu.is_none() && opened.assigned.obstacles.is_empty() {
            limits::warn_unpinned(plan.ram.size);
        }
        print(options.json, &description)?;
        return Ok(ExitReason::Planned);
    }
    if let Some(path) = &options.stats {
        stats::check_path(path)?;
    }
    let Opened { kernel, initrd, assigned } = opened;
    let shortage = kernel.shortage();
    let ram = build::ram(&plan, kernel, initrd, &dtb, &assigned)?;
    build::set_boot(&plan, &core)?;
    let doorbell = Arc::new(Doorbell::new()?);
    let board = build::board(plan.console, &core, &doorbell)?;
    let mut machine = Machine::new(core, ram, assigned, board.bus)?;
    let assigned = machine.assigned();
    let (lines, unused) = (Arc::new(Lines::new(assigned.wires())), Arc::new(Unused::of(assigned)));
    let recorder = options.stats.as_deref().map(|path| {
        let watched = (lines.clone(), unused.clone(), assigned.functions.watch());
        let (vm, vcpus, bus) = (machine.vm(), machine.vcpus(), machine.bus());
        let recorder = Recorder::new(path, started, vm, vcpus, bus.clone(), watched);
        Arc::new(recorder.through(assigned.backend()))
    });
    output::call(&doorbell);
    let sources = Sources {
        doorbell,
        signals,
        timeout: plan.timeout,
        input: board.input,
        clock: board.clock,
        memory: assigned.iommu.is_none().then(|| UnpinnedMemory::new(plan.ram.size)),
        silence: (plan.console == ConsoleKind::Stdio).then(|| Silence::new(board.spoke, shortage)),
    };
    machine.arm()?;
    let result = machine.run(sources, recorder);
    unused.tell(&Evidence {
        bus: machine.bus(),
        is_enabled: |spi| machine.gic().is_enabled(spi).ok(),
        has_fired: |device: &str| lines.have_fired(device),
        functions: &machine.assigned().functions.watch(),
    });
    machine.release();
    result
}
