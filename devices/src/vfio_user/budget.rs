//! How long a server may keep strait waiting.
//!
//! One budget for all that is asked before a guest has the device, one for all that is asked once the
//! run is ending. In between, a guest's accesses: what one of them waits beyond a small part of its
//! own is taken from a budget that grows back slowly, so that a server which answers each at the last
//! moment is given up as one that doesn't answer is.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// In how many steps the whole is waited for: the time during which strait itself is stopped
/// (Ctrl-Z) counts as two.
const STEPS: u32 = 50;

/// What part of the whole is left for all that remains once the run is ending.
const ENDING_PART: u32 = 10;

/// The budget of a guest's accesses grows back by a second in as many.
const REGROWTH: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No guest has the device yet.
    Opening,
    Serving,
    Ending,
}

#[derive(Debug)]
struct Budget {
    phase: Phase,
    left: Duration,
    /// When it grew last.
    since: Instant,
}

/// How long a server may still keep strait waiting.
#[derive(Debug)]
pub(super) struct TimeBudget {
    whole: Duration,
    budget: Mutex<Budget>,
    is_asked_to_stop: fn() -> bool,
}

/// An operation that waits for a server, by itself or for all of its messages.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    budget: &'a TimeBudget,
    /// What it may wait of its own.
    own: Duration,
    /// It has nothing else.
    alone: bool,
}

impl TimeBudget {
    /// For `whole` until a guest has the device, or until strait is to end, which
    /// [`stop::is_requested`](crate::stop::is_requested) tells, or another in its place.
    pub(super) fn new(whole: Duration, is_asked_to_stop: fn() -> bool) -> Self {
        let budget = Budget { phase: Phase::Opening, left: whole, since: Instant::now() };
        Self { whole, budget: Mutex::new(budget), is_asked_to_stop }
    }

    fn step(&self) -> Duration {
        (self.whole / STEPS).max(Duration::from_millis(1))
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        lock(&self.budget)
    }

    /// From here on a guest has the device.
    pub(super) fn serve(&self) {
        let mut budget = self.budget();
        if budget.phase == Phase::Opening {
            *budget = Budget { phase: Phase::Serving, left: self.whole, since: Instant::now() };
        }
    }

    /// The run is ending.
    pub(super) fn shorten_deadline(&self) {
        let mut budget = self.budget();
        if budget.phase != Phase::Ending {
            budget.phase = Phase::Ending;
            budget.left = budget.left.min(self.whole / ENDING_PART);
        }
    }

    /// Nothing is to be waited for, since strait is to end before a guest has the device.
    pub(super) fn is_stopped(&self) -> bool {
        self.budget().phase == Phase::Opening && (self.is_asked_to_stop)()
    }

    /// Begins an operation.
    pub(super) fn begin(&self) -> Wait<'_> {
        let mut budget = self.budget();
        if budget.phase != Phase::Serving {
            return Wait { budget: self, own: Duration::ZERO, alone: false };
        }
        let now = Instant::now();
        let grown = now.saturating_duration_since(budget.since) / REGROWTH;
        budget.left = budget.left.saturating_add(grown).min(self.whole);
        budget.since = now;
        Wait { budget: self, own: self.step(), alone: false }
    }

    /// Begins what nobody else waits for.
    pub(super) fn alone(&self) -> Wait<'_> {
        Wait { budget: self, own: self.whole, alone: true }
    }
}

impl Wait<'_> {
    /// For how long to wait next before asking again; `None` for no longer at all.
    pub(super) fn next(&mut self) -> Option<Duration> {
        if self.budget.is_stopped() {
            return None;
        }
        let budget = self.budget.budget();
        if budget.phase == Phase::Ending {
            let own = if self.alone { self.budget.whole / ENDING_PART } else { Duration::ZERO };
            self.own = self.own.min(own);
        }
        let left = if self.alone { self.own } else { self.own.saturating_add(budget.left) };
        Some(left.min(self.budget.step())).filter(|left| !left.is_zero())
    }

    /// So long was waited.
    pub(super) fn waited(&mut self, long: Duration) {
        let long = long.min(self.budget.step().saturating_mul(2));
        let beyond = long.saturating_sub(self.own);
        self.own = self.own.saturating_sub(long);
        if !self.alone {
            let mut budget = self.budget.budget();
            budget.left = budget.left.saturating_sub(beyond);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const WHOLE: Duration = Duration::from_secs(5);
    const STEP: Duration = Duration::from_millis(100);

    /// Waits in such steps for as long as there is something to wait; for how long that was.
    fn exhaust(wait: &mut Wait<'_>, step: Duration) -> Duration {
        let mut waited = Duration::ZERO;
        while let Some(next) = wait.next() {
            let long = next.min(step);
            wait.waited(long);
            waited += long;
            assert!(waited < 10 * WHOLE);
        }
        waited
    }

    #[test]
    fn all_that_comes_before_a_guest_shares_a_budget() {
        let budget = TimeBudget::new(WHOLE, || false);
        for _ in 0..49 {
            budget.begin().waited(STEP);
        }
        assert_eq!(exhaust(&mut budget.begin(), STEP), STEP);
        assert_eq!(budget.begin().next(), None);
        // A guest's accesses have one of their own.
        budget.serve();
        assert_eq!(exhaust(&mut budget.begin(), STEP), WHOLE + STEP);
    }

    #[test]
    fn short_waits_of_a_guest_cost_nothing_and_long_ones_add_up() {
        let budget = TimeBudget::new(WHOLE, || false);
        budget.serve();
        for _ in 0..1000 {
            budget.begin().waited(STEP);
        }
        for _ in 0..25 {
            let mut wait = budget.begin();
            wait.waited(STEP);
            wait.waited(2 * STEP);
        }
        let left = exhaust(&mut budget.begin(), STEP);
        assert!(left < 3 * STEP, "{left:?}");
        // It grows back, slowly.
        budget.budget().since -= Duration::from_secs(20);
        let left = exhaust(&mut budget.begin(), STEP);
        assert!((20 * STEP..23 * STEP).contains(&left), "{left:?}");
        budget.budget().since -= Duration::from_secs(2000);
        assert_eq!(exhaust(&mut budget.begin(), STEP), WHOLE + STEP);
    }

    #[test]
    fn at_the_end_little_is_left_for_all_of_it() {
        let budget = TimeBudget::new(WHOLE, || false);
        budget.serve();
        let (mut going_on, mut alone) = (budget.begin(), budget.alone());
        budget.shorten_deadline();
        assert_eq!(exhaust(&mut going_on, STEP), 5 * STEP);
        assert_eq!(exhaust(&mut alone, STEP), 5 * STEP);
        assert_eq!(budget.begin().next(), None);
        // Neither a second shorten_deadline nor a guest changes that.
        budget.shorten_deadline();
        budget.serve();
        assert_eq!(budget.begin().next(), None);
    }

    #[test]
    fn a_stop_ends_what_comes_before_a_guest() {
        static STOP: AtomicBool = AtomicBool::new(false);
        let budget = TimeBudget::new(WHOLE, || STOP.load(Ordering::Relaxed));
        let mut wait = budget.begin();
        assert_eq!(wait.next(), Some(STEP));
        STOP.store(true, Ordering::Relaxed);
        assert_eq!(wait.next(), None);
        assert!(budget.is_stopped());
        budget.serve();
        assert!(!budget.is_stopped() && budget.begin().next().is_some());
    }

    #[test]
    fn the_time_that_strait_itself_is_stopped_hardly_counts() {
        let budget = TimeBudget::new(WHOLE, || false);
        let mut wait = budget.begin();
        wait.waited(Duration::from_secs(3600));
        assert_eq!(exhaust(&mut wait, STEP), WHOLE - 2 * STEP);
    }
}
