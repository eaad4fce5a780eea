//! What the debugger and the vCPU threads share: who may run, and who has stopped why.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arch::debug::{DebuggedCpu, Stop};
use devices::sync::lock;
use vmm_sys_util::eventfd::EventFd;

use crate::signals;

/// How long a vCPU's thread may take to notice a kick before it is kicked again: one that waits for something
/// else than its guest has missed it.
const KICK_TIMEOUT: Duration = Duration::from_millis(10);

/// What a vCPU's thread does that was at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It runs its guest.
    Open,
    /// It is wanted elsewhere, and comes again.
    Away,
    /// It ends: the run is over.
    Over,
}

/// Holds vCPU threads up.
pub struct Gate {
    state: Mutex<State>,
    /// Locked by who changes registers of vCPUs that are here, before the state.
    registers: Mutex<()>,
    /// Notified when the state has changed.
    changed: Condvar,
    /// vCPUs are to come to the gate.
    pausing: AtomicBool,
    /// Signalled when a vCPU has stopped, or the run is over.
    event: EventFd,
}

#[derive(Default)]
struct State {
    vcpus: Vec<VcpuState>,
    /// Threads are wanted elsewhere.
    away: bool,
    /// All vCPUs are stopped, whatever else some have stopped for.
    is_paused: bool,
    /// How often the guest was reset.
    resets: u64,
    /// The run is over, with this exit status.
    ended: Option<u8>,
}

#[derive(Default)]
struct VcpuState {
    /// Its thread, once there is one.
    thread: Option<libc::pid_t>,
    may_run: bool,
    /// Its thread waits here.
    is_parked: bool,
    /// Why it came.
    stop: Option<Stop>,
}

impl Gate {
    /// A gate for so many vCPUs, which is open or not.
    ///
    /// # Errors
    ///
    /// The process has no more descriptors.
    pub fn new(vcpus: usize, is_open: bool) -> io::Result<Self> {
        let state = || VcpuState { may_run: is_open, ..VcpuState::default() };
        let vcpus = (0..vcpus).map(|_| state()).collect();
        let state = State { vcpus, is_paused: !is_open, ..State::default() };
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let (registers, changed, pausing) = Default::default();
        Ok(Self { state: Mutex::new(state), registers, changed, pausing, event })
    }

    /// Makes the calling thread that of vCPU `index`.
    pub fn enter(&self, index: usize) {
        // SAFETY: takes nothing, and can't fail.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) };
        if let Some(vcpu) = lock(&self.state).vcpus.get_mut(index) {
            vcpu.thread = libc::pid_t::try_from(thread).ok();
        }
    }

    /// Whether vCPUs are to come here: their threads wait for nothing else then.
    pub fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::Acquire)
    }

    /// Called by the thread of vCPU `index` before that enters its guest, and when that has left it, with why if
    /// that is the debugger's concern; waits until it may run.
    pub fn pass(&self, index: usize, stop: Option<Stop>) -> Passage {
        let mut state = lock(&self.state);
        if let (Some(vcpu), Some(_)) = (state.vcpus.get_mut(index), stop) {
            (vcpu.stop, vcpu.may_run) = (stop, false);
            // Fails only if it is signalled already, 2^64 times.
            let _ = self.event.write(1);
        }
        loop {
            if state.ended.is_some() {
                return Passage::Over;
            }
            let away = state.away;
            let Some(vcpu) = state.vcpus.get_mut(index) else { return Passage::Open };
            vcpu.is_parked = !vcpu.may_run;
            if vcpu.may_run {
                return Passage::Open;
            }
            self.changed.notify_all();
            if away {
                return Passage::Away;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Called by the thread of vCPU `index` when that enters its guest no more before it has
    /// [passed](Self::pass) again.
    pub fn leave(&self, index: usize) {
        if let Some(vcpu) = lock(&self.state).vcpus.get_mut(index) {
            vcpu.is_parked = true;
        }
        self.changed.notify_all();
    }

    /// Has threads that wait here go, for a pause of the guest that isn't the debugger's.
    pub fn call_away(&self) {
        lock(&self.state).away = true;
        self.changed.notify_all();
    }

    /// They may wait here again.
    pub fn let_stay(&self) {
        lock(&self.state).away = false;
    }

    /// The guest is reset: what vCPUs have stopped for is forgotten. A debugger doesn't change their registers
    /// before this is dropped.
    #[cold]
    pub fn note_reset(&self) -> MutexGuard<'_, ()> {
        let registers = lock(&self.registers);
        let mut state = lock(&self.state);
        state.resets = state.resets.wrapping_add(1);
        let may_run = !state.is_paused;
        for vcpu in &mut state.vcpus {
            if vcpu.stop.take().is_some() {
                vcpu.may_run = may_run;
            }
        }
        drop(state);
        self.changed.notify_all();
        registers
    }

    /// Keeps the guest from being reset, by which registers change.
    pub fn registers(&self) -> MutexGuard<'_, ()> {
        lock(&self.registers)
    }

    /// How often the guest was reset.
    pub fn resets(&self) -> u64 {
        lock(&self.state).resets
    }

    /// Stops the vCPUs, and waits until their threads are here. `false`: the run is over.
    pub fn pause(&self, cpus: &[Box<dyn DebuggedCpu>]) -> bool {
        self.pausing.store(true, Ordering::Release);
        let mut state = lock(&self.state);
        state.is_paused = true;
        state.vcpus.iter_mut().for_each(|vcpu| vcpu.may_run = false);
        cpus.iter().for_each(|cpu| cpu.interrupt());
        while state.ended.is_none() && state.vcpus.iter().any(|vcpu| !vcpu.is_parked) {
            for vcpu in state.vcpus.iter().filter(|vcpu| !vcpu.is_parked) {
                vcpu.thread.iter().for_each(|thread| kick(*thread));
            }
            let waited = self.changed.wait_timeout(state, KICK_TIMEOUT);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        self.pausing.store(false, Ordering::Release);
        state.ended.is_none()
    }

    /// Lets these vCPUs run; why they have stopped is forgotten.
    pub fn resume(&self, which: impl Fn(usize) -> bool) {
        let mut state = lock(&self.state);
        state.is_paused = false;
        for (_, vcpu) in state.vcpus.iter_mut().enumerate().filter(|(index, _)| which(*index)) {
            (vcpu.may_run, vcpu.stop) = (true, None);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A vCPU that has stopped, and why, each once; and how often the guest was reset before.
    pub fn take_stop(&self) -> Option<(usize, Stop, u64)> {
        let mut state = lock(&self.state);
        let resets = state.resets;
        let mut vcpus = state.vcpus.iter_mut().enumerate();
        vcpus.find_map(|(index, vcpu)| Some((index, vcpu.stop.take()?, resets)))
    }

    /// Ends the run with this exit status: nobody waits here any more.
    pub fn end(&self, exit_status: u8) {
        lock(&self.state).ended.get_or_insert(exit_status);
        self.changed.notify_all();
        let _ = self.event.write(1);
    }

    /// The exit status, once the run is over.
    pub fn exit_status(&self) -> Option<u8> {
        lock(&self.state).ended
    }

    /// What is readable when a vCPU has stopped, or the run is over.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// Has a thread of this process leave its guest, or whatever it waits for in the kernel.
fn kick(thread: libc::pid_t) {
    // SAFETY: the call takes numbers; a thread that has ended is none of this process any more.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signals::kick_signal()) };
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn vcpus_wait_until_they_may_run() {
        let gate = Arc::new(Gate::new(2, false).unwrap());
        let threads: Vec<_> = (0..2)
            .map(|index| {
                let gate = gate.clone();
                thread::spawn(move || (gate.pass(index, None), gate.pass(index, Some(Stop::Step))))
            })
            .collect();
        assert!(gate.pause(&[]));
        assert_eq!(gate.take_stop(), None);
        gate.resume(|index| index == 1);
        let stop = || gate.event().read().ok().and_then(|_| gate.take_stop());
        let stop = std::iter::repeat_with(stop).find_map(|stop| stop);
        assert_eq!(stop, Some((1, Stop::Step, 0)));
        // They come together again, whatever was told.
        assert!(gate.pause(&[]));
        assert_eq!(gate.take_stop(), None);
        gate.end(3);
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        use Passage::{Open, Over};
        assert_eq!(results, [(Over, Over), (Open, Over)]);
        assert!(!gate.pause(&[]));
        assert_eq!(gate.exit_status(), Some(3));
    }

    #[test]
    fn an_open_gate_holds_nobody_up() {
        let gate = Gate::new(1, true).unwrap();
        assert_eq!(gate.pass(0, None), Passage::Open);
        assert_eq!(gate.pass(7, Some(Stop::Other)), Passage::Open);
        assert!(gate.event().read().is_err());
    }

    #[test]
    fn those_that_wait_go_elsewhere_and_come_again() {
        let gate = Arc::new(Gate::new(2, false).unwrap());
        let waits = thread::spawn({
            let gate = gate.clone();
            move || (gate.pass(0, None), gate.pass(0, None))
        });
        // The other one is away already.
        gate.leave(1);
        assert!(gate.pause(&[]));
        gate.call_away();
        while !waits.is_finished() {
            thread::yield_now();
        }
        assert_eq!(waits.join().unwrap(), (Passage::Away, Passage::Away));
        assert!(gate.pause(&[]));
        gate.let_stay();
        gate.resume(|index| index == 1);
        assert_eq!(gate.pass(1, None), Passage::Open);
    }

    #[test]
    fn a_reset_lets_those_go_that_a_debugger_has_not_stopped() {
        for paused in [false, true] {
            let gate = Arc::new(Gate::new(1, true).unwrap());
            let stops = thread::spawn({
                let gate = gate.clone();
                move || gate.pass(0, Some(Stop::Step))
            });
            while gate.event().read().is_err() {}
            if paused {
                assert!(gate.pause(&[]));
            }
            drop(gate.note_reset());
            assert_eq!((gate.take_stop(), gate.resets()), (None, 1));
            if paused {
                gate.end(0);
            }
            let expected = if paused { Passage::Over } else { Passage::Open };
            assert_eq!(stops.join().unwrap(), expected);
        }
    }
}
