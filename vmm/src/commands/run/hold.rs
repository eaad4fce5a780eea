//! Where the threads of vCPUs wait while their guest is to stand still.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use devices::sync::lock;

/// What vCPUs are to do.
const RUN: u8 = 0;
const HOLD: u8 = 1;
const END: u8 = 2;

/// Holds the threads of vCPUs up.
#[derive(Default)]
pub struct Hold {
    order: AtomicU8,
    state: Mutex<State>,
    /// Notified when the state or the order has changed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// How many threads wait here, or have ended.
    held: usize,
    /// How often they were let go.
    round: u64,
}

impl Hold {
    /// Whether vCPUs may run: asked at each exit.
    #[inline]
    pub fn may_run(&self) -> bool {
        self.order.load(Ordering::Relaxed) == RUN
    }

    /// Whether the run is over.
    pub fn is_over(&self) -> bool {
        self.order.load(Ordering::SeqCst) == END
    }

    /// The number of this time of running, for [`wait`](Self::wait).
    pub fn round(&self) -> u64 {
        lock(&self.state).round
    }

    /// Called by the thread of a vCPU that has run in this round: waits for the next. Whether there is one.
    #[cold]
    pub fn wait(&self, round: u64) -> bool {
        let mut state = lock(&self.state);
        state.held = state.held.saturating_add(1);
        self.changed.notify_all();
        while state.round == round && !self.is_over() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held = state.held.saturating_sub(1);
        !self.is_over()
    }

    /// Called by a thread that comes no more.
    pub fn leave(&self) {
        let mut state = lock(&self.state);
        state.held = state.held.saturating_add(1);
        self.changed.notify_all();
    }

    /// Has vCPUs come here. Who calls it makes them leave their guests then.
    pub fn begin(&self) {
        self.order.store(HOLD, Ordering::SeqCst);
    }

    /// Waits for so many threads to be here, for at most this time. Whether they are.
    pub fn await_all(&self, count: usize, time: Duration) -> bool {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, time, |state| state.held < count);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.held >= count
    }

    /// Lets them run.
    pub fn end(&self) {
        let mut state = lock(&self.state);
        state.round = state.round.wrapping_add(1);
        self.order.store(RUN, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }

    /// The run is over: nobody waits here any more.
    pub fn finish(&self) {
        // Under the lock: else a thread that looked just before would miss it.
        let state = lock(&self.state);
        self.order.store(END, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn threads_come_wait_and_go_on_until_the_end() {
        let hold = Arc::new(Hold::default());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let hold = hold.clone();
                thread::spawn(move || {
                    for rounds in 0_u32.. {
                        let round = hold.round();
                        while hold.may_run() {
                            thread::yield_now();
                        }
                        if !hold.wait(round) {
                            return rounds;
                        }
                    }
                    0
                })
            })
            .collect();
        assert!(!hold.await_all(1, Duration::from_millis(1)));
        for _ in 0..5 {
            hold.begin();
            assert!(hold.await_all(3, LONG));
            hold.end();
        }
        // Those that haven't come yet, or not gone, find the end, too.
        hold.begin();
        hold.finish();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() <= 5));
        assert!(hold.is_over() && !hold.may_run());
    }

    #[test]
    fn a_thread_that_has_ended_is_not_waited_for() {
        let hold = Hold::default();
        hold.leave();
        hold.begin();
        assert!(hold.await_all(1, LONG));
    }
}
