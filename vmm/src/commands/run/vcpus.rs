//! The vCPU threads.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arch::debug::Stop;
use arch::exit::Exit;
use arch::load_store::Kind;
use arch::{ImmediateExit, Vcpu, program_counter, smccc};
use devices::bus::{Action, Bus};
use devices::pci::HostBridge;
use devices::scmi::Scmi;
use devices::sync::lock;
use devices::vfio::remedy;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::hold::Hold;
use crate::error::Error;
use crate::exit_reason::ExitReason;
use crate::gdb::{Gate, Passage};
use crate::sandbox::seccomp;
use crate::stats::{Exits, Recorder};
use crate::trace::{self, Tracer};
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
    threads: Vec<JoinHandle<()>>,
    /// Each locked by its thread but while it is held.
    vcpus: Vec<Arc<Mutex<Vcpu>>>,
    exits: Vec<ImmediateExit>,
}

impl VcpuThreads {
    /// Starts a thread for each of these vCPUs.
    ///
    /// # Errors
    ///
    /// The host allows no more threads.
    pub fn start(vcpus: Vec<Vcpu>, context: &Arc<VcpuContext>) -> Result<Self, Error> {
        let count = vcpus.len() as u64;
        let context = context.clone();
        let (threads, exits, all_vcpus) = Default::default();
        let mut all = Self { context, threads, vcpus: all_vcpus, exits };
        for mut vcpu in vcpus {
            let (exit, index) = (vcpu.immediate_exit(), vcpu.index());
            let vcpu = Arc::new(Mutex::new(vcpu));
            all.vcpus.push(vcpu.clone());
            all.exits.push(exit);
            let context = all.context.clone();
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || {
                    let index = usize::try_from(index).unwrap_or(usize::MAX);
                    context.gate.iter().for_each(|gate| gate.enter(index));
                    seccomp::Kind::Vcpu.enter();
                    context.live(index, &vcpu);
                })
                .map_err(|e| no_thread(count, &e))?;
            all.threads.push(thread);
        }
        Ok(all)
    }

    /// Has all vCPUs stand still, unless it is to `give_up` before they do: one that waits for a server's
    /// answer can't be stopped. Whether they do.
    #[cold]
    pub fn hold(&self, give_up: impl Fn() -> bool) -> bool {
        self.context.hold.begin();
        self.context.gate.iter().for_each(|gate| gate.call_away());
        self.request_exits();
        loop {
            self.kick();
            if self.context.hold.await_all(self.threads.len(), KICK_TIMEOUT) {
                return true;
            }
            if give_up() {
                self.release();
                return false;
            }
        }
    }

    /// Lets them run again.
    #[cold]
    pub fn release(&self) {
        self.context.gate.iter().for_each(|gate| gate.let_stay());
        self.context.hold.end();
    }

    /// The vCPUs, while they are [held](Self::hold).
    pub fn vcpus(&self) -> impl Iterator<Item = MutexGuard<'_, Vcpu>> {
        self.vcpus.iter().map(|vcpu| lock(vcpu))
    }

    fn request_exits(&self) {
        for exit in &self.exits {
            // SAFETY: a vCPU is dropped with `self.vcpus`.
            unsafe { exit.request() };
        }
    }

    /// Has threads leave their guest, or whatever they wait for in the kernel.
    fn kick(&self) {
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            #[allow(clippy::unnecessary_cast, reason = "a pointer with musl")]
            let id = thread.as_pthread_t() as libc::pthread_t;
            // SAFETY: the thread has not been joined, so its id is valid.
            unsafe { libc::pthread_kill(id, signals::kick_signal()) };
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.context.hold.finish();
        // One that couldn't be started leaves others waiting for a debugger.
        self.context.gate.iter().for_each(|gate| gate.end(1));
        self.request_exits();
        loop {
            self.kick();
            let all = self.context.hold.await_all(self.threads.len(), KICK_TIMEOUT);
            if all || self.threads.iter().all(JoinHandle::is_finished) {
                break;
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
    scmi: Option<Arc<Scmi>>,
    waker: Arc<Waker>,
    recorder: Option<Arc<Recorder>>,
    /// A guest that asks for a reset may begin anew.
    restarts: bool,
    /// Where a debugger holds them up.
    gate: Option<Arc<Gate>>,
    /// What records what they do with devices.
    tracer: Option<Arc<Tracer>>,
    /// Where vCPUs that are to leave their guest wait.
    hold: Hold,
    /// That of the first vCPU which ended the run, or its guest's life.
    exit_reason: Mutex<Option<ExitReason>>,
}

impl VcpuContext {
    /// For vCPUs with this bus, RAM and, if there are any, PCI host bridge and SCMI, whose guest may begin
    /// anew or not.
    pub fn new(
        bus: Arc<Bus>,
        memory: GuestMemoryMmap,
        bridge: Option<Arc<HostBridge>>,
        scmi: Option<Arc<Scmi>>,
        waker: Arc<Waker>,
        recorder: Option<Arc<Recorder>>,
        restarts: bool,
    ) -> Self {
        let (hold, exit_reason, gate, tracer) = Default::default();
        Self {
            bus,
            memory,
            bridge,
            scmi,
            waker,
            recorder,
            restarts,
            gate,
            tracer,
            hold,
            exit_reason,
        }
    }

    /// The same with a gate, if there is one, where a debugger holds them up.
    #[must_use]
    pub fn with_gate(self, gate: Option<Arc<Gate>>) -> Self {
        Self { gate, ..self }
    }

    /// The same with what records what they do, if that is wanted.
    #[must_use]
    pub fn with_tracer(self, tracer: Option<Arc<Tracer>>) -> Self {
        Self { tracer, ..self }
    }

    /// Why a vCPU ended the run, if one did; once.
    pub fn take_exit_reason(&self) -> Option<ExitReason> {
        lock(&self.exit_reason).take()
    }

    /// Whether a vCPU ended the run, and nobody has [taken](Self::take_exit_reason) why.
    pub fn has_ended(&self) -> bool {
        lock(&self.exit_reason).is_some()
    }

    /// Ends the run, or the guest's life. The first reason stands. Whether the guest may begin anew then.
    pub fn end(&self, reason: ExitReason) -> bool {
        let is_reset = matches!(lock(&self.exit_reason).get_or_insert(reason), ExitReason::Reset);
        self.waker.stop();
        is_reset && self.restarts
    }

    /// The vCPUs' registers aren't what a debugger has left in them. It changes none before this is dropped.
    pub fn note_reset(&self) -> Option<MutexGuard<'_, ()>> {
        self.gate.as_ref().map(|gate| gate.note_reset())
    }

    /// Holds a vCPU up while a debugger wants it, which may have to know why it has stopped.
    fn pass_gate(&self, index: usize, stop: Option<Stop>) -> Passage {
        self.gate.as_ref().map_or(Passage::Open, |gate| gate.pass(index, stop))
    }

    /// Runs a vCPU until the run ends.
    fn live(&self, index: usize, vcpu: &Mutex<Vcpu>) {
        let mut round = self.hold.round();
        while self.run(index, &mut lock(vcpu)) {
            self.gate.iter().for_each(|gate| gate.leave(index));
            if !self.hold.wait(round) {
                break;
            }
            round = self.hold.round();
        }
        self.hold.leave();
    }

    /// Runs a vCPU for as long as it may. Whether it may run again.
    fn run(&self, index: usize, vcpu: &mut Vcpu) -> bool {
        vcpu.begin();
        if self.tracer.is_some() {
            trace::enter_vcpu(index, vcpu.as_raw_fd(), program_counter);
        }
        let exits = self.recorder.as_ref().and_then(|r| r.exits(index)).unwrap_or_default();
        if let (Some(recorder), 0) = (&self.recorder, index) {
            recorder.note_first_instruction();
        }
        let mut faults = 0;
        // One that is to wait for a debugger hasn't run yet.
        let mut passage = self.pass_gate(index, None);
        while passage == Passage::Open && self.hold.may_run() {
            let reason = match vcpu.run() {
                Ok(Exit::Undecodable) => {
                    Exits::count(&exits.undecodable);
                    self.handle_undecodable(vcpu).unwrap_or_else(|e| Some(run_failed(index, &e)))
                }
                Ok(Exit::Call { .. }) => {
                    Exits::count(&exits.call);
                    let answered = vcpu.set_register(0, self.answer_call());
                    answered.err().map(|e| run_failed(index, &e))
                }
                Ok(Exit::Interrupted) => {
                    Exits::count(&exits.interrupted);
                    passage = self.pass_gate(index, None);
                    None
                }
                Ok(Exit::Debug { syndrome, address }) => {
                    passage = self.pass_gate(index, Some(Stop::new(syndrome, address)));
                    None
                }
                Ok(Exit::MemoryFault { gpa }) => self.trap_functions(gpa, &mut faults),
                Ok(exit) => {
                    faults = 0;
                    self.handle(exit, &exits)
                }
                Err(e) => Some(run_failed(index, &e)),
            };
            if let Some(reason) = reason {
                // Where another vCPU was first, this one is needed again.
                if !self.end(reason) {
                    return false;
                }
                break;
            }
        }
        if passage == Passage::Over || self.hold.is_over() {
            return false;
        }
        // Else KVM would complete the last access, and go on behind it, in the guest's next life.
        vcpu.settle();
        true
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

    /// Answers a call of the guest's: none but SCMI's is forwarded.
    #[cold]
    fn answer_call(&self) -> u64 {
        let note = |call| self.tracer.iter().for_each(|tracer| tracer.note_call(call));
        let answered = self.scmi.as_ref().is_some_and(|scmi| scmi.ring_noting(&note));
        if answered { smccc::SUCCESS } else { smccc::NOT_SUPPORTED }
    }

    /// Writes to a device.
    fn write(&self, gpa: u64, data: &[u8]) -> Option<ExitReason> {
        match self.bus.write(gpa, data) {
            Action::None => None,
            Action::Crash => Some(ExitReason::Crash),
            Action::AwaitOutput => {
                let is_paused = || self.gate.as_ref().is_some_and(|gate| gate.is_pausing());
                output::wait_for_room(|| !self.hold.may_run() || is_paused());
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

#[cfg(test)]
mod tests;
