//! What the debugger and the vCPU threads share: who may run, and who has stopped why.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use arch::debug::{DebuggedCpu, Stop};
use devices::sync::lock;
use vmm_sys_util::eventfd::EventFd;

use crate::signals;

/// How long a vCPU's thread may take to notice a kick before it is kicked again: one that waits for something
/// else than its guest has missed it.
const KICK_TIMEOUT: Duration = Duration::from_millis(10);

/// Holds vCPU threads up.
pub struct Gate {
    state: Mutex<State>,
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
        let state = State { vcpus: (0..vcpus).map(|_| state()).collect(), ended: None };
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let (changed, pausing) = Default::default();
        Ok(Self { state: Mutex::new(state), changed, pausing, event })
    }

    /// Makes the calling thread that of vCPU `index`.
    pub fn enter(&self, index: usize) {
        // SAFETY: takes nothing, and can't fail.
        let thread = unsafe { libc::gettid() };
        if let Some(vcpu) = lock(&self.state).vcpus.get_mut(index) {
            vcpu.thread = Some(thread);
        }
    }

    /// Whether vCPUs are to come here: their threads wait for nothing else then.
    pub fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::Acquire)
    }

    /// Called by the thread of vCPU `index` when that has left its guest, with why if that is the debugger's
    /// concern; waits until it may run. `false`: the run is over.
    pub fn pass(&self, index: usize, stop: Option<Stop>) -> bool {
        let mut state = lock(&self.state);
        if let (Some(vcpu), Some(_)) = (state.vcpus.get_mut(index), stop) {
            (vcpu.stop, vcpu.may_run) = (stop, false);
            // Fails only if it is signalled already, 2^64 times.
            let _ = self.event.write(1);
        }
        loop {
            let over = state.ended.is_some();
            let Some(vcpu) = state.vcpus.get_mut(index) else { return !over };
            vcpu.is_parked = !over && !vcpu.may_run;
            if !vcpu.is_parked {
                return !over;
            }
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Stops the vCPUs, and waits until their threads are here. `false`: the run is over.
    pub fn pause(&self, cpus: &[Box<dyn DebuggedCpu>]) -> bool {
        self.pausing.store(true, Ordering::Release);
        let mut state = lock(&self.state);
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
        for (_, vcpu) in state.vcpus.iter_mut().enumerate().filter(|(index, _)| which(*index)) {
            (vcpu.may_run, vcpu.stop) = (true, None);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A vCPU that has stopped, and why; each once.
    pub fn take_stop(&self) -> Option<(usize, Stop)> {
        let mut state = lock(&self.state);
        let mut vcpus = state.vcpus.iter_mut().enumerate();
        vcpus.find_map(|(index, vcpu)| Some((index, vcpu.stop.take()?)))
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
        assert_eq!(stop, Some((1, Stop::Step)));
        // They come together again, whatever was told.
        assert!(gate.pause(&[]));
        assert_eq!(gate.take_stop(), None);
        gate.end(3);
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(results, [(false, false), (true, false)]);
        assert!(!gate.pause(&[]));
        assert_eq!(gate.exit_status(), Some(3));
    }

    #[test]
    fn an_open_gate_holds_nobody_up() {
        let gate = Gate::new(1, true).unwrap();
        assert!(gate.pass(0, None));
        assert!(gate.pass(7, Some(Stop::Other)));
        assert!(gate.event().read().is_err());
    }
}
