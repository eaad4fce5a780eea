//! The vCPU threads.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arch::exit::Exit;
use arch::load_store::Kind;
use arch::{ImmediateExit, Vcpu};
use devices::bus::{Action, Bus};
use devices::pci::HostBridge;
use devices::vfio::remedy;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::exit_reason::ExitReason;
use crate::sandbox::seccomp;
use crate::stats::{Exits, Recorder};
use crate::waker::Waker;
use crate::{limits, output, signals};

/// How many faults of a vCPU in a row, after none of which a mapping was removed, end the run:
/// another vCPU may have removed it first.
const MAX_FAULTS: u32 = 16;

/// How long a thread may take to notice a kick before it is kicked again: one that was just about to
/// block has missed it.
const KICK_TIMEOUT: Duration = Duration::from_millis(10);

/// The threads that run vCPUs, each in one of its own. They are stopped and joined when this is
/// dropped.
pub struct VcpuThreads {
    context: Arc<VcpuContext>,
    threads: Vec<JoinHandle<Vcpu>>,
    exits: Vec<ImmediateExit>,
    finished: mpsc::Receiver<()>,
}

impl VcpuThreads {
    /// Starts a thread for each of these vCPUs.
    ///
    /// # Errors
    ///
    /// The host allows no more threads.
    pub fn start(vcpus: Vec<Vcpu>, context: &Arc<VcpuContext>) -> Result<Self, Error> {
        let (sender, finished) = mpsc::channel();
        let count = vcpus.len() as u64;
        let context = context.clone();
        let mut all = Self { context, threads: Vec::new(), exits: Vec::new(), finished };
        for mut vcpu in vcpus {
            all.exits.push(vcpu.immediate_exit());
            let (context, sender) = (all.context.clone(), sender.clone());
            let thread = thread::Builder::new()
                .name(format!("vcpu{}", vcpu.index()))
                .spawn(move || {
                    seccomp::Kind::Vcpu.enter();
                    context.run(&mut vcpu);
                    drop(context);
                    // Fails only if the main thread is gone.
                    let _ = sender.send(());
                    vcpu
                })
                .map_err(|e| no_thread(count, &e))?;
            all.threads.push(thread);
        }
        Ok(all)
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.context.stop.store(true, Ordering::SeqCst);
        // A vCPU whose thread couldn't be started is gone.
        for exit in self.exits.iter().take(self.threads.len()) {
            // SAFETY: a vCPU is dropped only below, when its thread has returned it.
            unsafe { exit.request() };
        }
        let mut left = self.threads.len();
        while left > 0 {
            for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
                #[allow(clippy::unnecessary_cast, reason = "a pointer with musl")]
                let id = thread.as_pthread_t() as libc::pthread_t;
                // SAFETY: the thread has not been joined, so its id is valid.
                unsafe { libc::pthread_kill(id, signals::kick_signal()) };
            }
            match self.finished.recv_timeout(KICK_TIMEOUT) {
                Ok(()) => left -= 1,
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        for thread in self.threads.drain(..) {
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

/// What the vCPU threads share.
pub struct VcpuContext {
    bus: Arc<Bus>,
    memory: GuestMemoryMmap,
    bridge: Option<Arc<HostBridge>>,
    waker: Arc<Waker>,
    recorder: Option<Arc<Recorder>>,
    /// vCPUs are to leave their guest.
    stop: AtomicBool,
    /// That of the first vCPU which ended the run.
    exit_reason: OnceLock<ExitReason>,
}

impl VcpuContext {
    /// For vCPUs with this bus, RAM and, if there is one, PCI host bridge.
    pub fn new(
        bus: Arc<Bus>,
        memory: GuestMemoryMmap,
        bridge: Option<Arc<HostBridge>>,
        waker: Arc<Waker>,
        recorder: Option<Arc<Recorder>>,
    ) -> Self {
        let (stop, exit_reason) = Default::default();
        Self { bus, memory, bridge, waker, recorder, stop, exit_reason }
    }

    /// Why a vCPU ended the run, if one did.
    pub fn into_exit_reason(self) -> Option<ExitReason> {
        self.exit_reason.into_inner()
    }

    /// Runs a vCPU until the run ends.
    fn run(&self, vcpu: &mut Vcpu) {
        let index = usize::try_from(vcpu.index()).unwrap_or(usize::MAX);
        let exits = self.recorder.as_ref().and_then(|r| r.exits(index)).unwrap_or_default();
        if let (Some(recorder), 0) = (&self.recorder, index) {
            recorder.note_first_instruction();
        }
        let mut faults = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let reason = match vcpu.run() {
                Ok(Exit::Undecodable) => {
                    Exits::count(&exits.undecodable);
                    self.handle_undecodable(vcpu).unwrap_or_else(|e| Some(run_failed(index, &e)))
                }
                Ok(Exit::MemoryFault { gpa }) => self.trap_functions(gpa, &mut faults),
                Ok(exit) => {
                    faults = 0;
                    self.handle(exit, &exits)
                }
                Err(e) => Some(run_failed(index, &e)),
            };
            if let Some(reason) = reason {
                // The first vCPU's reason stands.
                let _ = self.exit_reason.set(reason);
                self.waker.stop();
                return;
            }
        }
    }

    /// Carries out an access whose syndrome doesn't describe it, or has it abort where strait can't.
    #[cold]
    fn handle_undecodable(&self, vcpu: &mut Vcpu) -> io::Result<Option<ExitReason>> {
        let read = |gpa| self.memory.read_obj(GuestAddress(gpa)).ok().map(u64::from_le);
        let Some((gpa, access)) = vcpu.undecodable_access(read)? else {
            return vcpu.abort_access().map(|()| None);
        };
        let bytes = usize::try_from(access.bytes).unwrap_or_default();
        let mut reason = None;
        for (register, at) in access.registers().zip((gpa..).step_by(bytes.max(1))) {
            let mut data = [0; 8];
            let value = data.get_mut(..bytes).unwrap_or_default();
            if access.kind == Kind::Store {
                let stored = vcpu.register(register)?.to_le_bytes();
                value.copy_from_slice(stored.get(..bytes).unwrap_or_default());
                reason = reason.or(self.write(at, value));
            } else {
                self.bus.read(at, value);
                vcpu.set_register(register, access.extended(u64::from_le_bytes(data)))?;
            }
        }
        vcpu.complete(&access)?;
        Ok(reason)
    }

    /// Writes to a device.
    fn write(&self, gpa: u64, data: &[u8]) -> Option<ExitReason> {
        match self.bus.write(gpa, data) {
            Action::None => None,
            Action::Crash => Some(ExitReason::Crash),
            Action::AwaitOutput => {
                output::wait_for_room(|| self.stop.load(Ordering::SeqCst));
                None
            }
        }
    }

    #[inline]
    fn handle(&self, exit: Exit<'_>, exits: &Exits) -> Option<ExitReason> {
        match exit {
            Exit::MmioRead { gpa, data } => {
                Exits::count(&exits.mmio_read);
                self.bus.read(gpa, data);
                return None;
            }
            Exit::MmioWrite { gpa, data } => {
                Exits::count(&exits.mmio_write);
                return self.write(gpa, data);
            }
            Exit::Interrupted => {
                Exits::count(&exits.interrupted);
                return None;
            }
            _ => Exits::count(&exits.system_event),
        }
        Some(match exit {
            Exit::PowerOff => ExitReason::PowerOff,
            Exit::Reset => ExitReason::Reset,
            Exit::Failed(why) => {
                ExitReason::Failed(Error::new(format!("the guest stopped: {why}")))
            }
            _ => ExitReason::Crash,
        })
    }

    /// The host has no memory for what the guest accesses. That of PCI functions may be revoked at
    /// any time (a reset by somebody else who has the device open, a server that takes its memory
    /// back), so it traps from here on, and the guest makes its access again. What isn't theirs fails
    /// again, and that ends the run.
    #[cold]
    fn trap_functions(&self, gpa: Option<u64>, faults: &mut u32) -> Option<ExitReason> {
        let trapped = self.bridge.as_ref().is_some_and(|bridge| bridge.trap());
        *faults = if trapped { 0 } else { faults.saturating_add(1) };
        let unbacked = || {
            let place = gpa.map(|gpa| format!(" at {gpa:#x}")).unwrap_or_default();
            let what = format!("the guest stopped: the host can't give it its memory{place}");
            ExitReason::Failed(Error::new(what).help(remedy::KERNEL_LOG))
        };
        (*faults > MAX_FAULTS).then(unbacked)
    }
}

fn run_failed(index: usize, e: &io::Error) -> ExitReason {
    ExitReason::Failed(Error::new(format!("vCPU {index} can't run: {e}")))
}
