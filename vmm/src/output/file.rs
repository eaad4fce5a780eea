//! A console's output to a file.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use devices::sync;

use super::sink::{POLL_INTERVAL, STALL_TIMEOUT};

/// How many bytes wait to be written at most; from half of them on, a vCPU waits before it writes more.
const MAX_WAITING: usize = 64 << 10;

/// Output to a file, written by a thread of its own: a file system may take its time, or hang.
///
/// Who fills it faster than the file takes it waits, no longer than [`STALL_TIMEOUT`]; what exceeds the
/// bound then is dropped and counted, as is what can't be written.
#[derive(Debug, Default)]
pub struct FileBuffer {
    /// Until the thread has it.
    file: Mutex<Option<File>>,
    name: &'static str,
    state: Mutex<State>,
    /// Notified when `waiting` was empty and is no more, and at the end.
    filled: Condvar,
    /// Notified when bytes have been written.
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Some are being written.
    writing: bool,
    /// The file has taken nothing for long.
    stalled: bool,
    ended: bool,
    dropped: u64,
}

impl FileBuffer {
    /// That of a file, before there is a thread that writes.
    pub(super) fn new(file: File, name: &'static str) -> Self {
        Self { file: Mutex::new(Some(file)), name, ..Self::default() }
    }

    /// Starts the thread, which calls `enter` first, if it isn't started.
    ///
    /// # Errors
    ///
    /// The host allows no more threads.
    pub(super) fn start(self: &Arc<Self>, enter: fn()) -> std::io::Result<()> {
        let Some(file) = sync::lock(&self.file).take() else { return Ok(()) };
        let shared = self.clone();
        // Ends when `finish` says so, or with the process.
        thread::Builder::new().name(format!("{}-file", self.name)).spawn(move || {
            enter();
            shared.write(file, shared.name);
        })?;
        Ok(())
    }

    /// Takes output; whether a vCPU is to wait before it makes more.
    pub fn put(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        if bytes.len() > MAX_WAITING.saturating_sub(state.waiting.len()) {
            state.dropped = state.dropped.saturating_add(bytes.len() as u64);
        } else {
            state.waiting.extend_from_slice(bytes);
            if !state.writing && state.waiting.len() == bytes.len() {
                self.filled.notify_one();
            }
        }
        state.waiting.len() >= MAX_WAITING / 2 && !state.stalled
    }

    /// How many bytes were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Waits until there is room again, the file proves to be stalled, or `stop`.
    pub fn wait_for_room(&self, stop: impl Fn() -> bool) {
        let has_room = |state: &State| state.waiting.len() < MAX_WAITING / 2;
        if !self.wait(has_room, STALL_TIMEOUT, stop) {
            self.state().stalled = true;
        }
    }

    /// Waits until all is written, or nothing was for `timeout`, or `stop`. Ends the thread.
    pub(super) fn finish(&self, timeout: Duration, stop: impl Fn() -> bool) {
        self.state().ended = true;
        self.filled.notify_one();
        self.wait(|state| state.waiting.is_empty() && !state.writing, timeout, stop);
        let mut state = self.state();
        state.dropped = state.dropped.saturating_add(state.waiting.len() as u64);
        state.waiting.clear();
    }

    /// Waits for a condition; false if it doesn't come for `timeout`.
    fn wait(
        &self,
        done: impl Fn(&State) -> bool,
        timeout: Duration,
        stop: impl Fn() -> bool,
    ) -> bool {
        let end = Instant::now() + timeout;
        let mut state = self.state();
        while !done(&state) {
            if stop() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            let waited = self.written.wait_timeout(state, POLL_INTERVAL);
            state = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        true
    }

    /// What the thread does.
    fn write(&self, mut file: File, name: &str) {
        let (mut failed, mut bytes) = (false, Vec::new());
        let mut state = self.state();
        loop {
            while state.waiting.is_empty() {
                if state.ended {
                    return;
                }
                let waited = self.filled.wait(state);
                state = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            bytes.clear();
            std::mem::swap(&mut bytes, &mut state.waiting);
            (state.writing, state.stalled) = (true, false);
            drop(state);
            let lost = write_all(&mut file, &bytes);
            if let (Some((_, error)), false) = (&lost, failed) {
                failed = true;
                log::warn!(
                    "{name}: output can't be written to its file, what fails is lost: {error}"
                );
            }
            state = self.state();
            state.writing = false;
            let lost = lost.map_or(0, |(count, _)| count as u64);
            state.dropped = state.dropped.saturating_add(lost);
            self.written.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}

/// Writes all; how many bytes couldn't be, and why.
fn write_all(file: &mut File, bytes: &[u8]) -> Option<(usize, std::io::Error)> {
    let mut left = bytes;
    while !left.is_empty() {
        match file.write(left) {
            Ok(0) => return Some((left.len(), std::io::ErrorKind::WriteZero.into())),
            Ok(written) => left = left.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => return Some((left.len(), error)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsRawFd, OwnedFd};

    use super::*;

    fn started(file: File) -> Arc<FileBuffer> {
        let buffer = Arc::new(FileBuffer::new(file, "test"));
        buffer.start(|| ()).unwrap();
        buffer
    }

    #[test]
    fn all_is_written_and_in_order() {
        let (mut reader, end) = std::io::pipe().unwrap();
        let buffer = started(File::from(OwnedFd::from(end)));
        let reading = thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut all = Vec::new();
        for n in 0_u32..100_000 {
            let line = format!("{n}\n");
            if buffer.put(line.as_bytes()) {
                buffer.wait_for_room(|| false);
            }
            all.extend(line.into_bytes());
        }
        buffer.finish(STALL_TIMEOUT, || false);
        assert!(reading.join().unwrap() == all);
        assert_eq!(buffer.dropped(), 0);
    }

    #[test]
    fn a_full_disk_loses_what_it_does_not_take() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let buffer = started(full);
        for _ in 0..10 {
            assert!(!buffer.put(b"lost"));
        }
        buffer.finish(STALL_TIMEOUT, || false);
        assert_eq!(buffer.dropped(), 40);
    }

    #[test]
    fn a_file_that_hangs_stops_nobody_for_long() {
        // A pipe that nobody reads, full from the first.
        let (_reader, end) = std::io::pipe().unwrap();
        let mut end = File::from(OwnedFd::from(end));
        // SAFETY: the descriptor is open, and the argument a number.
        let size = unsafe { libc::fcntl(end.as_raw_fd(), libc::F_GETPIPE_SZ) };
        end.write_all(&vec![b'x'; usize::try_from(size).unwrap()]).unwrap();
        let buffer = started(end);
        assert!(!buffer.put(b"x"));
        while !buffer.state().writing {
            thread::sleep(Duration::from_millis(1));
        }
        while !buffer.put(&[b'x'; 1000]) {}
        // Ended while it waits.
        buffer.wait_for_room(|| true);
        assert!(!buffer.state().stalled);
        buffer.state().stalled = true;
        for _ in 0..1000 {
            assert!(!buffer.put(&[b'x'; 1000]));
        }
        assert!(buffer.dropped() > 800_000);
        buffer.finish(Duration::from_millis(10), || false);
    }
}
