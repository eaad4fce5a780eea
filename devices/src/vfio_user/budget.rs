//! Limits on the time for which a server may keep strait waiting.
//!
//! All requests before a guest has the device share one budget, and all once the run is ending share
//! another. In between are a guest's accesses: what one of them waits beyond a small allowance of its
//! own is taken from a budget that grows back slowly, so that a server which answers each access at the
//! last moment is given up as one that doesn't answer is.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::error::{Failure, FailureKind};
use crate::sync::lock;

/// In how many steps the total is waited for: time during which strait itself is stopped (Ctrl-Z)
/// counts as two.
const STEPS: u32 = 50;

/// The part of the total that is left once the run is ending.
const TEARDOWN_PART: u32 = 10;

/// The budget of a guest's accesses grows back by a second in this many.
const REGROWTH: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No guest has the device yet.
    Setup,
    Running,
    Teardown,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    left: Duration,
    /// When `left` grew last.
    since: Instant,
}

/// How long a server may still keep strait waiting.
#[derive(Debug)]
pub(super) struct TimeBudget {
    total: Duration,
    state: Mutex<State>,
    is_stop_requested: fn() -> bool,
}

/// An operation that waits for a server, once or for several messages.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    budget: &'a TimeBudget,
    /// What it may wait without taking from the budget.
    allowance: Duration,
    /// It has its allowance only.
    separate: bool,
}

impl TimeBudget {
    /// For `total` until a guest has the device, or until strait is to end, which
    /// [`stop::is_requested`](crate::stop::is_requested) tells, or another function in its place.
    pub(super) fn new(total: Duration, is_stop_requested: fn() -> bool) -> Self {
        let state = State { phase: Phase::Setup, left: total, since: Instant::now() };
        Self { total, state: Mutex::new(state), is_stop_requested }
    }

    fn step(&self) -> Duration {
        (self.total / STEPS).max(Duration::from_millis(1))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// From here on a guest has the device.
    pub(super) fn start_guest(&self) {
        let mut state = self.state();
        if state.phase == Phase::Setup {
            *state = State { phase: Phase::Running, left: self.total, since: Instant::now() };
        }
    }

    /// The run is ending.
    pub(super) fn shorten(&self) {
        let mut state = self.state();
        if state.phase != Phase::Teardown {
            state.phase = Phase::Teardown;
            state.left = state.left.min(self.total / TEARDOWN_PART);
        }
    }

    /// Strait is to end before a guest has the device.
    fn is_stopped(&self) -> bool {
        self.state().phase == Phase::Setup && (self.is_stop_requested)()
    }

    /// Begins an operation.
    pub(super) fn begin(&self) -> Wait<'_> {
        let mut state = self.state();
        if state.phase != Phase::Running {
            return Wait { budget: self, allowance: Duration::ZERO, separate: false };
        }
        let now = Instant::now();
        let grown = now.saturating_duration_since(state.since) / REGROWTH;
        state.left = state.left.saturating_add(grown).min(self.total);
        state.since = now;
        Wait { budget: self, allowance: self.step(), separate: false }
    }

    /// Begins an operation that no request waits for.
    pub(super) fn begin_separate(&self) -> Wait<'_> {
        Wait { budget: self, allowance: self.total, separate: true }
    }
}

impl Wait<'_> {
    /// Waits once by `block`, which gets the longest time that it may take; the failure is that the
    /// operation has no time left, with `why` as its reason.
    pub(super) fn step<T>(
        &mut self,
        why: impl FnOnce() -> String,
        block: impl FnOnce(Duration) -> T,
    ) -> Result<T, Failure> {
        let Some(longest) = self.longest() else {
            return Err(if self.budget.is_stopped() {
                Failure::new(FailureKind::Disconnected, "strait was told to end")
            } else {
                Failure::new(FailureKind::TimedOut, why())
            });
        };
        let started = Instant::now();
        let waited = block(longest);
        self.spend(started.elapsed());
        Ok(waited)
    }

    /// How long the next step may be; `None` if no time is left.
    fn longest(&mut self) -> Option<Duration> {
        if self.budget.is_stopped() {
            return None;
        }
        let TimeBudget { total, .. } = self.budget;
        let state = self.budget.state();
        if state.phase == Phase::Teardown {
            let most = if self.separate { *total / TEARDOWN_PART } else { Duration::ZERO };
            self.allowance = self.allowance.min(most);
        }
        let shared = if self.separate { Duration::ZERO } else { state.left };
        let left = self.allowance.saturating_add(shared);
        Some(left.min(self.budget.step())).filter(|left| !left.is_zero())
    }

    fn spend(&mut self, time: Duration) {
        let time = time.min(self.budget.step().saturating_mul(2));
        let beyond = time.saturating_sub(self.allowance);
        self.allowance = self.allowance.saturating_sub(time);
        if !self.separate {
            let mut state = self.budget.state();
            state.left = state.left.saturating_sub(beyond);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const TOTAL: Duration = Duration::from_secs(5);
    const STEP: Duration = Duration::from_millis(100);

    /// Waits in such steps for as long as there is something to wait; for how long that was.
    fn exhaust(wait: &mut Wait<'_>, step: Duration) -> Duration {
        let mut waited = Duration::ZERO;
        while let Some(next) = wait.longest() {
            let long = next.min(step);
            wait.spend(long);
            waited += long;
            assert!(waited < 10 * TOTAL);
        }
        waited
    }

    #[test]
    fn requests_before_a_guest_share_a_budget() {
        let budget = TimeBudget::new(TOTAL, || false);
        for _ in 0..49 {
            budget.begin().spend(STEP);
        }
        assert_eq!(exhaust(&mut budget.begin(), STEP), STEP);
        assert_eq!(budget.begin().longest(), None);
        // A guest's accesses have one of their own.
        budget.start_guest();
        assert_eq!(exhaust(&mut budget.begin(), STEP), TOTAL + STEP);
    }

    #[test]
    fn short_waits_of_a_guest_are_free_and_long_ones_add_up() {
        let budget = TimeBudget::new(TOTAL, || false);
        budget.start_guest();
        for _ in 0..1000 {
            budget.begin().spend(STEP);
        }
        for _ in 0..25 {
            let mut wait = budget.begin();
            wait.spend(STEP);
            wait.spend(2 * STEP);
        }
        let left = exhaust(&mut budget.begin(), STEP);
        assert!(left < 3 * STEP, "{left:?}");
        // It grows back, slowly.
        budget.state().since -= Duration::from_secs(20);
        let left = exhaust(&mut budget.begin(), STEP);
        assert!((20 * STEP..23 * STEP).contains(&left), "{left:?}");
        budget.state().since -= Duration::from_secs(2000);
        assert_eq!(exhaust(&mut budget.begin(), STEP), TOTAL + STEP);
    }

    #[test]
    fn teardown_has_a_tenth_of_the_total() {
        let budget = TimeBudget::new(TOTAL, || false);
        budget.start_guest();
        let (mut going_on, mut separate) = (budget.begin(), budget.begin_separate());
        budget.shorten();
        assert_eq!(exhaust(&mut going_on, STEP), 5 * STEP);
        assert_eq!(exhaust(&mut separate, STEP), 5 * STEP);
        assert_eq!(budget.begin().longest(), None);
        // Neither a second call nor a guest changes that.
        budget.shorten();
        budget.start_guest();
        assert_eq!(budget.begin().longest(), None);
    }

    #[test]
    fn a_stop_request_ends_setup_only() {
        static STOP: AtomicBool = AtomicBool::new(false);
        let budget = TimeBudget::new(TOTAL, || STOP.load(Ordering::Relaxed));
        let mut wait = budget.begin();
        assert_eq!(wait.longest(), Some(STEP));
        STOP.store(true, Ordering::Relaxed);
        assert_eq!(wait.longest(), None);
        assert!(budget.is_stopped());
        budget.start_guest();
        assert!(!budget.is_stopped() && budget.begin().longest().is_some());
    }

    #[test]
    fn time_during_which_strait_is_suspended_hardly_counts() {
        let budget = TimeBudget::new(TOTAL, || false);
        let mut wait = budget.begin();
        wait.spend(Duration::from_secs(3600));
        assert_eq!(exhaust(&mut wait, STEP), TOTAL - 2 * STEP);
    }
}
