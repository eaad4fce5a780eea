//! A bounded buffer before a standard descriptor, filled by threads that must not block.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use super::write::{self, WriteMode};
use devices::sync;

/// How many bytes are buffered; a pipe holds four times as many by itself.
pub(super) const MAX_BUFFERED: usize = 16 << 10;

/// From so many bytes on, a vCPU waits before it writes more; the rest is for the others.
const HIGH_WATER_MARK: usize = MAX_BUFFERED - 4096;

/// A reader that takes nothing for so long is stalled: nothing waits for it until it does.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a wait checks whether it is to go on.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What became of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// All of them are written, or wait to be; else none of them.
    pub taken: bool,
    /// So many are buffered that a vCPU is to wait before it writes more, with no lock held.
    pub full: bool,
    /// Bytes are buffered that weren't before: the event loop has to write them.
    pub began: bool,
}

/// A descriptor's buffer.
///
/// Bytes are written at once where that can be done, so that nothing is different with a reader that
/// keeps up. Others wait, up to a bound; what exceeds it is dropped and counted. Nothing in here
/// ever blocks with a lock held.
#[derive(Debug)]
pub struct Sink {
    fd: RawFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Known from the first write on.
    mode: Option<WriteMode>,
    waiting: VecDeque<u8>,
    /// How many bytes were written.
    written: u64,
    /// How many bytes were dropped.
    dropped: u64,
    stalled: bool,
    /// The descriptor takes nothing any more.
    closed: bool,
}

impl Sink {
    /// The buffer of this descriptor.
    pub(super) const fn new(fd: RawFd) -> Self {
        let state = State {
            mode: None,
            waiting: VecDeque::new(),
            written: 0,
            dropped: 0,
            stalled: false,
            closed: false,
        };
        Self { fd, state: Mutex::new(state) }
    }

    /// Finds out how to write to the descriptor, which may take its path.
    pub(super) fn open(&self) {
        let mut state = self.state();
        state.mode.get_or_insert_with(|| WriteMode::of(self.fd));
    }

    /// Takes bytes, all or none.
    ///
    /// # Errors
    ///
    /// The descriptor can't be written, and what waited for it is lost: told once where it never
    /// can again.
    pub fn put(&self, bytes: &[u8]) -> io::Result<Put> {
        self.state().put(self.fd, bytes)
    }

    /// As [`put`](Self::put), but gives up where another thread, or the very same one, is at it.
    pub(super) fn try_put(&self, bytes: &[u8]) -> io::Result<Put> {
        match self.state.try_lock() {
            Ok(mut state) => state.put(self.fd, bytes),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().put(self.fd, bytes),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes what waits, as far as that can be done now; whether nothing waits any more.
    pub fn flush(&self) -> bool {
        let mut state = self.state();
        // What is lost by an error doesn't wait either.
        let _ = state.flush(self.fd);
        state.waiting.is_empty()
    }

    /// The descriptor by which to wait until more can be written, if something waits.
    pub fn backlog(&self) -> Option<RawFd> {
        let state = self.state();
        let mode = state.mode.as_ref().filter(|_| !state.waiting.is_empty());
        mode.map(|mode| mode.descriptor(self.fd))
    }

    /// How many bytes were dropped.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Forgets how many bytes were dropped, and returns it.
    pub(super) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.state().dropped)
    }

    /// Waits until there is room again, the reader proves to be stalled, or `stop` says that nothing
    /// has to wait any more.
    #[cold]
    pub fn wait_for_room(&self, stop: impl Fn() -> bool) {
        if !self.wait(HIGH_WATER_MARK, STALL_TIMEOUT, stop) {
            self.state().stalled = true;
        }
    }

    /// Waits until all is written, or nothing was for `timeout`, or `stop`. What is left then is
    /// dropped.
    pub(super) fn finish(&self, timeout: Duration, stop: impl Fn() -> bool) {
        let timeout = if self.state().stalled { Duration::ZERO } else { timeout };
        let end = Instant::now() + 10 * timeout;
        self.wait(1, timeout, || stop() || Instant::now() > end);
        self.state().drop_waiting();
    }

    /// Waits until all is written, however long that takes; `stop` ends it.
    pub(super) fn drain(&self, stop: impl Fn() -> bool) {
        self.wait(1, Duration::MAX, stop);
    }

    /// Whether the descriptor can't be written any more.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Waits until less than `level` bytes wait; false if nothing was written for `timeout`.
    fn wait(&self, level: usize, timeout: Duration, stop: impl Fn() -> bool) -> bool {
        let (mut written, mut since) = (None, Instant::now());
        loop {
            let fd = {
                let mut state = self.state();
                let _ = state.flush(self.fd);
                if state.waiting.len() < level {
                    return true;
                }
                if written.replace(state.written) != Some(state.written) {
                    since = Instant::now();
                }
                state.mode.as_ref().map_or(self.fd, |mode| mode.descriptor(self.fd))
            };
            if stop() {
                return true;
            }
            if since.elapsed() >= timeout {
                return false;
            }
            write::wait(fd, POLL_INTERVAL);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}

impl State {
    fn put(&mut self, fd: RawFd, bytes: &[u8]) -> io::Result<Put> {
        if self.closed {
            self.drop_bytes(bytes.len());
            return Ok(Put { taken: false, full: false, began: false });
        }
        let flushed = self.flush(fd);
        let waited = !self.waiting.is_empty();
        let written = flushed.and_then(|()| if waited { Ok(0) } else { self.write(fd, bytes) });
        let written = written.inspect_err(|_| self.drop_bytes(bytes.len()))?;
        let rest = bytes.get(written..).unwrap_or_default();
        // A line that has begun is ended.
        let taken = written > 0 || rest.len() <= MAX_BUFFERED.saturating_sub(self.waiting.len());
        if taken {
            self.waiting.extend(rest);
        } else {
            self.drop_bytes(rest.len());
        }
        let full = self.waiting.len() >= HIGH_WATER_MARK && !self.stalled;
        Ok(Put { taken, full, began: !waited && !self.waiting.is_empty() })
    }

    fn flush(&mut self, fd: RawFd) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            let written = self.write(fd, waiting.as_slices().0);
            self.waiting = waiting;
            match written {
                Ok(0) => break,
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(error) => {
                    self.drop_waiting();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Writes as much as can be now; returns how much.
    fn write(&mut self, fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
        let mode = self.mode.get_or_insert_with(|| WriteMode::of(fd));
        let mut done = 0;
        while let Some(left) = bytes.get(done..).filter(|left| !left.is_empty()) {
            match mode.write(fd, left) {
                Ok(written) => done = done.saturating_add(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // A full disk may have room again; whatever else it is stays so.
                    self.closed = !matches!(
                        error.kind(),
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                    );
                    return Err(error);
                }
            }
        }
        if done != 0 {
            self.written = self.written.saturating_add(done as u64);
            self.stalled = false;
        }
        Ok(done)
    }

    fn drop_waiting(&mut self) {
        self.drop_bytes(self.waiting.len());
        self.waiting.clear();
    }

    fn drop_bytes(&mut self, count: usize) {
        self.dropped = self.dropped.saturating_add(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pipe() -> (File, OwnedFd) {
        let mut ends = [0; 2];
        // SAFETY: pipe2 fills the two descriptors, which nobody else owns.
        let (read, write) = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        (read, write)
    }

    fn is_blocking(end: &OwnedFd) -> bool {
        // SAFETY: F_GETFL takes no pointer.
        unsafe { libc::fcntl(end.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK == 0 }
    }

    /// Numbered lines, until one isn't taken; how many were.
    fn fill(sink: &Sink) -> u32 {
        let line = |n| format!("{n:07}\n");
        (0..).find(|n| !sink.put(line(*n).as_bytes()).unwrap().taken).unwrap_or_default()
    }

    fn read_lines(reader: &mut impl Read, count: u32) {
        let mut text = vec![0; 8 * usize::try_from(count).unwrap()];
        reader.read_exact(&mut text).unwrap();
        let lines = String::from_utf8(text).unwrap();
        let numbers: Vec<u32> = lines.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, (0..count).collect::<Vec<u32>>());
    }

    #[test]
    fn what_is_kept_is_bounded_and_comes_out_whole_and_in_order() {
        for polled in [false, true] {
            let (mut reader, end) = pipe();
            let sink = Sink::new(end.as_raw_fd());
            if polled {
                sink.state().mode = Some(WriteMode::Polled(4096));
            }
            let taken = fill(&sink);
            // A pipe's 64 KiB and ours, in lines of 8 bytes; one that is polled keeps its last page.
            assert!((9_700..=10_240).contains(&taken), "{taken}");
            assert_eq!(sink.dropped(), 8);
            assert!(sink.backlog().is_some() && !sink.flush());
            let whole = std::thread::scope(|scope| {
                let reading = scope.spawn(|| read_lines(&mut reader, taken));
                sink.finish(STALL_TIMEOUT, || false);
                reading.join()
            });
            whole.unwrap();
            assert_eq!((sink.dropped(), sink.backlog()), (8, None));
            assert!(is_blocking(&end), "the others' descriptor is as it was");
        }
    }

    #[test]
    fn a_socket_is_no_different() {
        let (mut reader, end) = UnixStream::pair().unwrap();
        let sink = Sink::new(end.as_raw_fd());
        let taken = fill(&sink);
        let reading = std::thread::spawn(move || read_lines(&mut reader, taken));
        sink.finish(STALL_TIMEOUT, || false);
        reading.join().unwrap();
    }

    #[test]
    fn who_fills_it_is_told_to_wait_and_waits_no_longer_than_it_has_to() {
        let (mut reader, end) = pipe();
        let sink = Sink::new(end.as_raw_fd());
        let full = (0..200_000).find(|_| sink.put(b"x").unwrap().full);
        assert!(full.is_some_and(|count| count >= HIGH_WATER_MARK), "{full:?}");
        assert_eq!(sink.dropped(), 0);
        // Ended while it waits.
        sink.wait_for_room(|| true);
        assert!(!sink.state().stalled);
        // A reader that only paused.
        let has_room = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(200));
                let mut much = vec![0; 64 << 10];
                reader.read_exact(&mut much).unwrap();
            });
            // On a busy machine it may pause for longer than that.
            (0..12).any(|_| {
                sink.wait_for_room(|| false);
                !std::mem::take(&mut sink.state().stalled)
            })
        });
        assert!(has_room);
        assert_eq!(sink.dropped(), 0);
    }

    #[test]
    fn nobody_waits_for_a_stalled_reader_until_it_reads() {
        let (mut reader, end) = pipe();
        let sink = Sink::new(end.as_raw_fd());
        while !sink.put(b"x").unwrap().full {}
        sink.state().stalled = true;
        assert!((0..2 * MAX_BUFFERED).all(|_| !sink.put(b"x").unwrap().full));
        assert!(sink.dropped() > 0);
        let began = Instant::now();
        sink.finish(STALL_TIMEOUT, || false);
        assert!(began.elapsed() < STALL_TIMEOUT);
        let mut much = vec![0; 64 << 10];
        reader.read_exact(&mut much).unwrap();
        assert!(sink.put(b"x").unwrap().taken && !sink.state().stalled);
    }

    #[test]
    fn a_reader_that_is_gone_is_told_once_and_a_full_disk_may_have_room_again() {
        let (reader, end) = pipe();
        drop(reader);
        let sink = Sink::new(end.as_raw_fd());
        assert_eq!(sink.put(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(!sink.put(b"x").unwrap().taken);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let sink = Sink::new(full.as_raw_fd());
        for _ in 0..2 {
            assert_eq!(sink.put(b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
