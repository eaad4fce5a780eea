//! Waiting for descriptors (ppoll(2)).

use std::io;
use std::os::fd::RawFd;
use std::thread;
use std::time::Duration;

/// How long it is waited where the kernel has no memory to wait with.
const PAUSE: Duration = Duration::from_millis(100);

/// What waits for something to read in a descriptor, or for its other end to be gone. A negative one is ignored.
pub fn readable(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// What waits for room in a descriptor to write, or for its other end to be gone.
pub fn writable(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLOUT, revents: 0 }
}

/// Waits until one of these descriptors is ready, at most for so long: how many are. `None` is without a limit.
///
/// For callers that wait on after an error: none is ready then.
///
/// # Errors
///
/// A signal has interrupted it; or the kernel had no memory (ENOMEM), after a pause without which a caller that
/// waits on would keep a processor busy.
pub fn wait(entries: &mut [libc::pollfd], longest: Option<Duration>) -> io::Result<usize> {
    let timeout = longest.map(timespec);
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = libc::nfds_t::try_from(entries.len()).unwrap_or_default();
    // SAFETY: there are `count` entries, which the kernel alone writes to meanwhile; the timeout is null or one that
    // lives on, and so is the signal mask null.
    let ready = unsafe { libc::ppoll(entries.as_mut_ptr(), count, timeout, std::ptr::null()) };
    usize::try_from(ready).map_err(|_| {
        let error = io::Error::last_os_error();
        entries.iter_mut().for_each(|entry| entry.revents = 0);
        if error.kind() != io::ErrorKind::Interrupted {
            thread::sleep(longest.unwrap_or(PAUSE).min(PAUSE));
        }
        error
    })
}

/// A time as the kernel takes it.
fn timespec(time: Duration) -> libc::timespec {
    // SAFETY: all zeroes is a valid timespec.
    let mut spec: libc::timespec = unsafe { std::mem::zeroed() };
    spec.tv_sec = libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX);
    spec.tv_nsec = time.subsec_nanos().into();
    spec
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;
    use crate::testing::without;

    #[test]
    fn what_is_ready_is_told() {
        let (one, mut other) = UnixStream::pair().unwrap();
        let mut entries = [readable(one.as_raw_fd()), readable(-1), writable(one.as_raw_fd())];
        assert_eq!(wait(&mut entries, None).unwrap(), 1);
        assert_eq!(entries.map(|entry| entry.revents), [0, 0, libc::POLLOUT]);
        assert_eq!(wait(&mut entries[..2], Some(Duration::from_millis(1))).unwrap(), 0);
        other.write_all(b"x").unwrap();
        assert_eq!(wait(&mut entries[..2], None).unwrap(), 1);
        drop(other);
        assert_eq!(wait(&mut entries[..2], None).unwrap(), 1);
        assert_ne!(entries[0].revents & libc::POLLHUP, 0);
    }

    #[test]
    fn a_kernel_without_memory_is_asked_again_after_a_pause() {
        let waited = |longest| {
            without(&[libc::SYS_ppoll], libc::ENOMEM, move || {
                let mut entries = [libc::pollfd { revents: libc::POLLIN, ..readable(0) }];
                let begun = Instant::now();
                let error = wait(&mut entries, longest).unwrap_err();
                assert_eq!((error.raw_os_error(), entries[0].revents), (Some(libc::ENOMEM), 0));
                begun.elapsed()
            })
        };
        assert!(waited(None) >= PAUSE);
        assert!(waited(Some(Duration::from_secs(1000))) >= PAUSE);
        // Not longer than was asked for.
        waited(Some(Duration::ZERO));
    }
}
