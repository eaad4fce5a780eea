//! What a thread answers once, and another waits for: a channel of the standard library for one message,
//! in a tenth of the code.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// What both have.
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

enum State<T> {
    Awaited,
    There(T),
    /// The answer was taken, or there will be none.
    Over,
}

/// The one that answers. There is no answer if it is dropped before.
pub struct Answerer<T>(Arc<Shared<T>>);

/// The one that waits.
pub struct Answer<T>(Arc<Shared<T>>);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// There may be one later.
    Late,
    /// There won't be one.
    Never,
}

/// Both of them.
pub fn expected<T>() -> (Answerer<T>, Answer<T>) {
    let shared = Arc::new(Shared { state: Mutex::new(State::Awaited), changed: Condvar::new() });
    (Answerer(shared.clone()), Answer(shared))
}

impl<T> Answerer<T> {
    /// Answers.
    pub fn answer(self, answer: T) {
        *lock(&self.0.state) = State::There(answer);
    }
}

impl<T> Drop for Answerer<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        if matches!(*state, State::Awaited) {
            *state = State::Over;
        }
        drop(state);
        self.0.changed.notify_one();
    }
}

impl<T> Answer<T> {
    /// Waits so long for the answer, which is had once.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn wait(&self, longest: Duration) -> Result<T, NoAnswer> {
        let end = Instant::now().checked_add(longest);
        let mut state = lock(&self.0.state);
        loop {
            if !matches!(*state, State::Awaited) {
                return match std::mem::replace(&mut *state, State::Over) {
                    State::There(answer) => Ok(answer),
                    _ => Err(NoAnswer::Never),
                };
            }
            // What never comes to an end is waited for again and again.
            let left = end.map_or(longest, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(NoAnswer::Late);
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_answer_is_had_once() {
        let (answerer, answer) = expected();
        assert_eq!(answer.wait(Duration::from_millis(1)), Err(NoAnswer::Late));
        let thread = std::thread::spawn(move || answerer.answer(7));
        assert_eq!(answer.wait(LONG), Ok(7));
        assert_eq!(answer.wait(LONG), Err(NoAnswer::Never));
        thread.join().unwrap();
    }

    #[test]
    fn who_goes_without_an_answer_has_none() {
        let (answerer, answer) = expected::<()>();
        let thread = std::thread::spawn(move || drop(answerer));
        assert_eq!(answer.wait(LONG), Err(NoAnswer::Never));
        thread.join().unwrap();
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_dropped() {
        let (answerer, answer) = expected();
        drop(answer);
        let value = Arc::new(());
        answerer.answer(value.clone());
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
