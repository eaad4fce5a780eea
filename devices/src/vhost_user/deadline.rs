//! Bounds the time that a backend may take.
//!
//! The `vhost` crate waits for whole messages in blocking calls, and calls again when one of them says
//! that the time is up (`SO_RCVTIMEO`) or that descriptors came for which there was no room. What ends
//! it for certain is the end of the connection: that is what another thread does here.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sync::lock;

/// In how many steps the time is waited for: time during which strait itself is stopped (Ctrl-Z)
/// counts as one.
const STEPS: u32 = 50;

/// Runs `operation` on a connection, which is shut down if that takes longer than `limit`, or once
/// `is_given_up`. Answers also whether it was.
///
/// # Errors
///
/// The host has no more threads.
pub(super) fn within<T>(
    limit: Duration,
    is_given_up: fn() -> bool,
    connection: &UnixStream,
    operation: impl FnOnce() -> T,
) -> io::Result<(T, bool)> {
    let (is_done, changed) = (Mutex::new(false), Condvar::new());
    thread::scope(|scope| {
        let watch = thread::Builder::new().name("vhost-user-time".into());
        let watch = watch.spawn_scoped(scope, || {
            for _ in 0..STEPS {
                let waited = changed.wait_timeout_while(lock(&is_done), limit / STEPS, |d| !*d);
                if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                    return false;
                }
                if is_given_up() {
                    break;
                }
            }
            // Fails if it is shut down already.
            let _ = connection.shutdown(Shutdown::Both);
            true
        })?;
        let result = operation();
        *lock(&is_done) = true;
        changed.notify_one();
        Ok((result, watch.join().unwrap_or(true)))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_takes_too_long_is_ended() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let watched = one.try_clone().unwrap();
        let (read, late) = within(Duration::from_secs(60), || false, &watched, || 5).unwrap();
        assert_eq!((read, late), (5, false));
        let started = Instant::now();
        let limit = Duration::from_millis(100);
        let (read, late) = within(limit, || false, &watched, || one.read(&mut [0])).unwrap();
        assert!(late && read.is_ok_and(|read| read == 0) && started.elapsed() >= limit);
        drop(other);
        let (mut one, _other) = UnixStream::pair().unwrap();
        let watched = one.try_clone().unwrap();
        let read = within(Duration::from_secs(60), || true, &watched, || one.read(&mut [0]));
        assert!(read.is_ok_and(|(_, late)| late));
    }
}
