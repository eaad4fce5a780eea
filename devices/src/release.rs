//! Waiting for what another process is about to release.
//!
//! The kernel releases the files of a killed process some time after its end is seen: those of io_uring are
//! closed by a work item (`io_ring_exit_work` of Linux' io_uring/io_uring.c), and the virtual machine monitor
//! of a killed supervisor ends after it (`PR_SET_PDEATHSIG`, prctl(2)). Who starts a guest again at once, or
//! gives its devices back, must not be told that they are in use.

use std::thread;
use std::time::{Duration, Instant};

/// How long something that another process has is waited for.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(500);

/// How often it is tried.
const INTERVAL: Duration = Duration::from_millis(10);

/// Repeats an attempt while its result says that another process has it, for [`TIMEOUT`] at most, and returns
/// the last result.
pub(crate) fn wait<T>(mut attempt: impl FnMut() -> T, is_held: impl Fn(&T) -> bool) -> T {
    let since = Instant::now();
    loop {
        let result = attempt();
        if !is_held(&result) || since.elapsed() >= TIMEOUT {
            return result;
        }
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_released_is_had_and_what_stays_is_told() {
        let mut attempts = 0;
        let mut attempt = || {
            attempts += 1;
            attempts
        };
        assert_eq!(wait(&mut attempt, |attempts| *attempts < 3), 3);
        // At once where nobody has it, and once more for the answer.
        assert_eq!(wait(&mut attempt, |_| false), 4);
        let since = Instant::now();
        assert!(wait(&mut attempt, |_| true) > 4);
        assert!(since.elapsed() >= TIMEOUT);
    }
}
