//! `strait run`: plan, build, run, end.

mod build;
pub mod describe;
mod plan;

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arch::exit::Exit;
use arch::{ImmediateExit, Vcpu};
use devices::bus::{Action, Bus};
use devices::pci::HostBridge;

use crate::assigned::Assigned;
use crate::cli::{ConsoleKind, RunOptions};
use crate::commands::device::BindGuard;
use crate::commands::print::print;
use crate::doorbell::Doorbell;
use crate::error::Error;
use crate::events::{self, Sources};
use crate::exit_reason::Ending;
use crate::irqfds::KvmWiring;
use crate::limits::UnpinnedMemory;
use crate::lines::Lines;
use crate::signals::{self, Signals};
use crate::silence::Silence;
use crate::stats::{Exits, Recorder};
use crate::unused::{Evidence, Unused};
use crate::{limits, logger, output, pci, stats};

use self::describe::Description;

/// Runs a guest to its end.
///
/// # Errors
///
/// What the options ask for can't be done, or the host failed on the way.
pub fn run(options: &RunOptions) -> Result<Ending, Error> {
    let started = Instant::now();
    logger::init(options.log_level);
    // From here on a signal ends the run in order, and what is borrowed is given back.
    let mut signals = Signals::new()?;
    let borrow = || BindGuard::take(&options.device_names(), options.force);
    let borrowed = options.bind.then(borrow).transpose();
    let ending = borrowed.and_then(|borrowed| {
        let ending = run_guest(options, started, &mut signals);
        // Only now is everything closed that holds the devices.
        drop(borrowed);
        ending
    });
    // What was given up on a signal ended by that signal.
    let ending = ending.or_else(|error| signals.end().map(Ending::Signal).ok_or(error));
    output::finish_console(!ending.as_ref().is_ok_and(Ending::is_by_guest));
    ending
}

/// Plans, builds and runs the machine; nothing of it is left when this returns.
fn run_guest(
    options: &RunOptions,
    started: Instant,
    signals: &mut Signals,
) -> Result<Ending, Error> {
    let mut plan = plan::resolve(options)?;

    let mut core = build::core(&plan)?;
    let tree = build::tree(&plan, &core)?;
    let dtb = build::dtb(&tree)?;
    if let Some(path) = &options.dump_dtb {
        build::dump_dtb(path, &dtb)?;
    }
    if options.dry_run {
        let description = Description::of(&plan, &core, &tree);
        if plan.assigned.backend().is_none() && plan.assigned.obstacles().is_empty() {
            limits::warn_unpinned(plan.ram.size);
        }
        print(options.json, &description)?;
        return Ok(Ending::Planned);
    }
    if let Some(path) = &options.stats {
        stats::check_path(path)?;
    }
    let shorter = plan.kernel.shortage();
    let ram = build::ram(&plan)?;
    let pages = build::pages(&plan);
    build::load(&plan.boot, plan.kernel, plan.initrd, &dtb, ram.memory(), &core.vcpus)?;
    drop(pages);
    let doorbell = Arc::new(Doorbell::new()?);
    let mut board = build::board(plan.console, &core, &doorbell)?;
    let wiring = Arc::new(KvmWiring::new(core.vm.clone(), &core.gic));
    plan.assigned.attach(&core.vm, &core.gic, &wiring, &ram, &mut board.bus)?;
    let mut bridge = None;
    if let Some(host) = core.pci.take() {
        let functions = plan.assigned.functions();
        functions.attach(host.seats().to_vec(), &core.gic, &wiring)?;
        bridge = Some(pci::attach(host, functions.shared(), &core.gic, &mut board.bus)?);
    }
    core.vm.add_ram(ram)?;
    let bus = Arc::new(board.bus);
    let (lines, unused) =
        (Arc::new(Lines::new(plan.assigned.wires())), Arc::new(Unused::of(&plan.assigned)));
    let recorder = options.stats.as_deref().map(|path| {
        let watched = (lines.clone(), unused.clone(), plan.assigned.functions().watch());
        let recorder = Recorder::new(path, started, &core.vm, &core.vcpus, bus.clone(), watched);
        Arc::new(recorder.through(plan.assigned.backend()))
    });
    let run = Arc::new(Run {
        bus: bus.clone(),
        bridge,
        over: AtomicBool::new(false),
        ending: OnceLock::new(),
        doorbell,
        recorder,
    });
    output::call(&run.doorbell);
    let sources = Sources {
        doorbell: run.doorbell.clone(),
        signals,
        timeout: plan.timeout,
        input: board.input,
        clock: board.clock,
        memory: plan.assigned.backend().is_none().then(|| UnpinnedMemory::new(plan.ram.size)),
        silence: (plan.console == ConsoleKind::Stdio).then(|| Silence::new(board.spoke, shorter)),
    };
    plan.assigned.arm()?;
    let ending = run_machine(core.vcpus, run, sources, &plan.assigned);
    unused.tell(&Evidence {
        bus: &bus,
        is_enabled: |spi| core.gic.is_enabled(spi).ok(),
        has_fired: |device: &str| lines.have_fired(device),
        functions: &plan.assigned.functions().watch(),
    });
    // It has what traps of the devices.
    drop(bus);
    plan.assigned.release();
    ending
}

/// Runs the vCPUs to the end of the run; they are gone when this returns.
fn run_machine(
    vcpus: Vec<Vcpu>,
    run: Arc<Run>,
    sources: Sources<'_>,
    assigned: &Assigned,
) -> Result<Ending, Error> {
    let recorder = run.recorder.clone();
    let crew = Crew::start(vcpus, &run)?;
    let ending = events::run(sources, recorder.as_deref());
    // A vCPU that waits for a server's answer can't be stopped.
    assigned.hurry();
    crew.stop(&run.over);
    // The threads are gone: what they left is all there is.
    let by_vcpu = Arc::into_inner(run).and_then(|run| run.ending.into_inner());
    let ending = match (ending?, by_vcpu) {
        (Some(ending), _) | (None, Some(ending)) => ending,
        (None, None) => Ending::Failed(Error::new("the guest stopped for no known reason")),
    };
    if let Some(Err(error)) = recorder.map(|recorder| recorder.write(Some(&ending))) {
        // How the guest ended is worth more.
        log::error!("{}", error.told());
    }
    match ending {
        Ending::Failed(error) => Err(error),
        ending => Ok(ending),
    }
}

/// What vCPU threads share.
struct Run {
    bus: Arc<Bus>,
    bridge: Option<Arc<HostBridge>>,
    over: AtomicBool,
    ending: OnceLock<Ending>,
    doorbell: Arc<Doorbell>,
    recorder: Option<Arc<Recorder>>,
}

/// The vCPU threads.
struct Crew {
    threads: Vec<JoinHandle<Vcpu>>,
    exits: Vec<ImmediateExit>,
    done: mpsc::Receiver<()>,
}

impl Crew {
    fn start(vcpus: Vec<Vcpu>, run: &Arc<Run>) -> Result<Self, Error> {
        let (finished, done) = mpsc::channel();
        let wanted = vcpus.len() as u64;
        let mut crew = Self { threads: Vec::new(), exits: Vec::new(), done };
        for mut vcpu in vcpus {
            crew.exits.push(vcpu.immediate_exit());
            let (shared, finished) = (run.clone(), finished.clone());
            let thread = thread::Builder::new()
                .name(format!("vcpu{}", vcpu.index()))
                .spawn(move || {
                    shared.work(&mut vcpu);
                    drop(shared);
                    // Nobody listens any more only if the main thread is gone.
                    let _ = finished.send(());
                    vcpu
                })
                .map_err(|e| no_thread(wanted, &e));
            match thread {
                Ok(thread) => crew.threads.push(thread),
                Err(error) => {
                    crew.stop(&run.over);
                    return Err(error);
                }
            }
        }
        Ok(crew)
    }

    /// Makes all threads leave their guests and waits for them.
    fn stop(self, over: &AtomicBool) {
        over.store(true, Ordering::SeqCst);
        for exit in &self.exits {
            // SAFETY: a vCPU is dropped only below, when its thread has returned it.
            unsafe { exit.request() };
        }
        let mut left = self.threads.len();
        while left > 0 {
            for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
                // SAFETY: the thread has not been joined, so its id is valid.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), signals::kick_signal()) };
            }
            // A kick is lost on a thread that was just about to block: once more.
            match self.done.recv_timeout(Duration::from_millis(10)) {
                Ok(()) => left -= 1,
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        for thread in self.threads {
            // A panic in the thread has ended the process already.
            let _ = thread.join();
        }
    }
}

/// Why one of so many vCPUs has no thread.
#[cold]
fn no_thread(vcpus: u64, e: &io::Error) -> Error {
    // Those that were started count among the others.
    limits::check_threads(vcpus)
        .err()
        .unwrap_or_else(|| Error::new(format!("a vCPU's thread can't be started: {e}")))
}

impl Run {
    /// Runs a vCPU until the run is over.
    fn work(&self, vcpu: &mut Vcpu) {
        let index = usize::try_from(vcpu.index()).unwrap_or(usize::MAX);
        let exits = self.recorder.as_ref().and_then(|r| r.exits(index)).unwrap_or_default();
        if let (Some(recorder), 0) = (&self.recorder, index) {
            recorder.note_first_instruction();
        }
        let mut faults = 0;
        while !self.over.load(Ordering::Relaxed) {
            let ending = match vcpu.run() {
                Ok(Exit::Undecodable) => {
                    Exits::count(&exits.undecodable);
                    vcpu.abort_access().err().map(|e| run_failed(index, &e))
                }
                Ok(Exit::MemoryFault { gpa }) => self.trap_functions(gpa, &mut faults),
                Ok(exit) => {
                    faults = 0;
                    self.take(exit, &exits)
                }
                Err(e) => Some(run_failed(index, &e)),
            };
            if let Some(ending) = ending {
                self.end(ending);
                return;
            }
        }
    }

    #[inline]
    fn take(&self, exit: Exit<'_>, exits: &Exits) -> Option<Ending> {
        match exit {
            Exit::MmioRead { gpa, data } => {
                Exits::count(&exits.mmio_read);
                self.bus.read(gpa, data);
                return None;
            }
            Exit::MmioWrite { gpa, data } => {
                Exits::count(&exits.mmio_write);
                return match self.bus.write(gpa, data) {
                    Action::None => None,
                    Action::Crash => Some(Ending::Crash),
                    Action::AwaitOutput => {
                        output::wait_for_room(|| self.over.load(Ordering::SeqCst));
                        None
                    }
                };
            }
            Exit::Interrupted => {
                Exits::count(&exits.interrupted);
                return None;
            }
            _ => Exits::count(&exits.system_event),
        }
        Some(match exit {
            Exit::PowerOff => Ending::PowerOff,
            Exit::Reset => Ending::Reset,
            Exit::Failed(why) => Ending::Failed(Error::new(format!("the guest stopped: {why}"))),
            _ => Ending::Crash,
        })
    }

    /// The host can't give the guest the memory that it accesses. That of PCI functions may go at any
    /// time (a reset by somebody else who has the device open, a server that takes back what it lent),
    /// so it traps from here on: the guest's access is made again and comes here. What isn't theirs
    /// fails again, and that ends the run.
    #[cold]
    fn trap_functions(&self, gpa: Option<u64>, faults: &mut u32) -> Option<Ending> {
        /// In a row, none of which let anything trap: another vCPU may have been first.
        const MOST: u32 = 16;
        let trapped = self.bridge.as_ref().is_some_and(|bridge| bridge.trap());
        *faults = if trapped { 0 } else { faults.saturating_add(1) };
        let unbacked = || {
            let place = gpa.map(|gpa| format!(" at {gpa:#x}")).unwrap_or_default();
            let what = format!("the guest stopped: the host can't give it its memory{place}");
            Ending::Failed(Error::new(what).help("dmesg has the kernel's own words"))
        };
        (*faults > MOST).then(unbacked)
    }

    fn end(&self, ending: Ending) {
        // The first vCPU's reason stands.
        let _ = self.ending.set(ending);
        self.doorbell.stop();
    }
}

fn run_failed(index: usize, e: &io::Error) -> Ending {
    Ending::Failed(Error::new(format!("vCPU {index} can't run: {e}")))
}
