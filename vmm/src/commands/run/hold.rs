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
    /// How many threads wait here for the next round.
    waiting: usize,
    /// How many come no more.
    gone: usize,
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
        if state.round == round && !self.is_over() {
            state.waiting = state.waiting.saturating_add(1);
            self.changed.notify_all();
        }
        while state.round == round && !self.is_over() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !self.is_over()
    }

    /// Called by a thread that comes no more.
    pub fn leave(&self) {
        let mut state = lock(&self.state);
        state.gone = state.gone.saturating_add(1);
        self.changed.notify_all();
    }

    /// Has vCPUs come here. Who calls it makes them leave their guests then.
    pub fn begin(&self) {
        self.order.store(HOLD, Ordering::SeqCst);
    }

    /// Waits for so many threads to be here, for at most this time. Whether they are.
    pub fn await_all(&self, count: usize, time: Duration) -> bool {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, time, |state| state.held() < count);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.held() >= count
    }

    /// Lets them run.
    pub fn end(&self) {
        let mut state = lock(&self.state);
        state.round = state.round.wrapping_add(1);
        // They run from now on, though they may wake up later than they are to come again.
        state.waiting = 0;
        self.order.store(RUN, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }

    /// The run is over: nobody waits here any more.
    pub fn finish(&self) {
        // Under the lock: else a thread that looked just before would miss it.
        let mut state = lock(&self.state);
        // They leave now, and are counted then.
        state.waiting = 0;
        self.order.store(END, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    /// How many threads don't run.
    fn held(&self) -> usize {
        self.waiting.saturating_add(self.gone)
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
    fn a_thread_that_is_let_go_is_not_here_before_it_comes_again() {
        for _ in 0..200 {
            let hold = Arc::new(Hold::default());
            let round = hold.round();
            hold.begin();
            let thread = thread::spawn({
                let hold = hold.clone();
                move || hold.wait(round)
            });
            assert!(hold.await_all(1, LONG));
            hold.end();
            hold.begin();
            // It may be asleep still.
            assert!(!hold.await_all(1, Duration::ZERO));
            assert!(thread.join().unwrap());
            // One that comes from the round before runs in this one.
            assert!(hold.wait(round) && !hold.await_all(1, Duration::ZERO));
        }
    }

    #[test]
    fn threads_are_counted_once_at_the_end() {
        let hold = Arc::new(Hold::default());
        let thread = thread::spawn({
            let hold = hold.clone();
            move || hold.wait(0)
        });
        assert!(hold.await_all(1, LONG));
        hold.finish();
        assert!(!thread.join().unwrap() && !hold.await_all(1, Duration::ZERO));
        assert!(!hold.wait(0) && !hold.await_all(1, Duration::ZERO));
        hold.leave();
        assert!(hold.await_all(1, Duration::ZERO) && !hold.await_all(2, Duration::ZERO));
    }

    #[test]
    fn a_thread_that_has_ended_is_not_waited_for() {
        let hold = Hold::default();
        hold.leave();
        hold.begin();
        assert!(hold.await_all(1, LONG));
    }
}
