//! Bounds the time that a backend may take.
//!
//! The `vhost` crate waits for whole messages in blocking calls, and calls again when one of them says
//! that the time is up (`SO_RCVTIMEO`) or that descriptors came for which there was no room. What ends
//! it for certain is the end of the connection: that is what another thread does here.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sync::lock;
use crate::task_thread::TaskThread;
use crate::thread_kind::ThreadKind;

/// In how many steps the time is waited for: time during which strait itself is stopped (Ctrl-Z)
/// counts as one.
const STEPS: u32 = 50;

/// The thread that ends connections which take too long, once there is one.
#[derive(Default)]
pub(super) struct Watch(Mutex<Option<TaskThread>>);

/// What is waited for; whether it is done.
#[derive(Default)]
struct Waited {
    is_done: Mutex<bool>,
    changed: Condvar,
}

impl Watch {
    /// Starts the thread, unless there is one.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub(super) fn start(&self) -> io::Result<()> {
        let mut thread = lock(&self.0);
        if thread.is_none() {
            *thread = Some(TaskThread::start(ThreadKind::VhostUser, "vhost-user-time", None)?);
        }
        Ok(())
    }

    /// Ends the thread, until there is to be one again.
    pub(super) fn end(&self) {
        drop(lock(&self.0).take());
    }

    /// Runs `operation` on a connection, which is shut down if that takes longer than `limit`, or once
    /// `is_given_up`. Answers also whether it was.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub(super) fn within<T>(
        &self,
        limit: Duration,
        is_given_up: fn() -> bool,
        connection: &UnixStream,
        operation: impl FnOnce() -> T,
    ) -> io::Result<(T, bool)> {
        self.start()?;
        let waited = Arc::new(Waited::default());
        let (theirs, connection) = (waited.clone(), connection.try_clone()?);
        let task = match &*lock(&self.0) {
            Some(thread) => thread.run(move || theirs.watch(limit, is_given_up, &connection))?,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let result = operation();
        *lock(&waited.is_done) = true;
        waited.changed.notify_one();
        Ok((result, task.join().unwrap_or(true)))
    }
}

impl Waited {
    /// Waits; whether the connection was shut down.
    fn watch(&self, limit: Duration, is_given_up: fn() -> bool, connection: &UnixStream) -> bool {
        for _ in 0..STEPS {
            let is_done = lock(&self.is_done);
            let waited = self.changed.wait_timeout_while(is_done, limit / STEPS, |done| !*done);
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
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_takes_too_long_is_ended() {
        let watch = Watch::default();
        let (mut one, other) = UnixStream::pair().unwrap();
        let watched = one.try_clone().unwrap();
        let (read, late) = watch.within(Duration::from_secs(60), || false, &watched, || 5).unwrap();
        assert_eq!((read, late), (5, false));
        let started = Instant::now();
        let limit = Duration::from_millis(100);
        let (read, late) = watch.within(limit, || false, &watched, || one.read(&mut [0])).unwrap();
        assert!(late && read.is_ok_and(|read| read == 0) && started.elapsed() >= limit);
        drop(other);
        let (mut one, _other) = UnixStream::pair().unwrap();
        let watched = one.try_clone().unwrap();
        let read = watch.within(Duration::from_secs(60), || true, &watched, || one.read(&mut [0]));
        assert!(read.is_ok_and(|(_, late)| late));
    }
}
