//! The thread that writes a bank's changes to its file, so that no vCPU waits for the host's disk.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vm_memory::{Bytes, GuestRegionMmap, MemoryRegionAddress};

use crate::ratelimit::LogLimit;
use crate::sync::lock;
use crate::thread_kind::ThreadKind;

use super::variables::{VariableFile, VariableFileError, VariableFileFault};

/// What is written at a time, in bytes.
const PAGE_SIZE: usize = 4 << 10;

/// How long the end of a run waits for a file's storage.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// The thread's stack in bytes.
const STACK_SIZE: usize = 128 << 10;

/// Writes changes to a file.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Thread>,
}

/// The thread, while there is one.
#[derive(Default)]
enum Thread {
    #[default]
    NotStarted,
    Running(JoinHandle<()>),
    Over,
}

struct Shared {
    file: Arc<VariableFile>,
    memory: Arc<GuestRegionMmap>,
    state: Mutex<State>,
    /// Notified when the state has changed.
    changed: Condvar,
    log: LogLimit,
}

#[derive(Default)]
struct State {
    /// The numbers of pages that have changed.
    pages: BTreeSet<u64>,
    /// Those that couldn't be written.
    failed: BTreeSet<u64>,
    /// Something was ever changed.
    touched: bool,
    /// The thread is to end once everything is written.
    end: bool,
    /// How its last writes and the wait for the disk went.
    result: Option<io::Result<()>>,
}

impl Writer {
    /// Writes what changes of `memory` to `file`, once it is [started](Self::start).
    pub(super) fn new(file: Arc<VariableFile>, memory: Arc<GuestRegionMmap>) -> Self {
        let (state, changed) = Default::default();
        let log = LogLimit::new("flash");
        let shared = Arc::new(Shared { file, memory, state, changed, log });
        Self { shared, thread: Mutex::default() }
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub(super) fn start(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        let builder = thread::Builder::new().name("flash".into()).stack_size(STACK_SIZE);
        let thread = builder.spawn(move || {
            ThreadKind::Flash.enter();
            while let Some(page) = shared.next() {
                if let Err(e) = shared.write(page) {
                    lock(&shared.state).failed.insert(page);
                    shared.log.error(format_args!("{}", shared.failed(e)));
                }
            }
            let result = shared.write_rest();
            lock(&shared.state).result = Some(result);
            shared.changed.notify_all();
        })?;
        *lock(&self.thread) = Thread::Running(thread);
        Ok(())
    }

    /// Notes that `size` bytes from `offset` in the bank on have changed.
    pub(super) fn note(&self, offset: u64, size: u64) {
        let page = PAGE_SIZE as u64;
        let last = offset.saturating_add(size.saturating_sub(1)) / page;
        let mut state = lock(&self.shared.state);
        state.pages.extend(offset / page..=last);
        state.touched = true;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Ends the thread, and waits until all is on the disk, which may take [`FINISH_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// The file can't be written, or the storage it is on hangs: the thread is left to the end of the process.
    pub(super) fn finish(&self) -> Result<(), VariableFileError> {
        self.finish_within(FINISH_TIMEOUT).map_err(|e| self.shared.failed(e))
    }

    fn finish_within(&self, limit: Duration) -> io::Result<()> {
        let thread = match std::mem::replace(&mut *lock(&self.thread), Thread::Over) {
            Thread::NotStarted => return self.shared.write_rest(),
            Thread::Running(thread) => thread,
            Thread::Over => return Ok(()),
        };
        let mut state = lock(&self.shared.state);
        state.end = true;
        self.shared.changed.notify_all();
        let is_busy = |state: &mut State| state.result.is_none();
        let waited = self.shared.changed.wait_timeout_while(state, limit, is_busy);
        let result = waited.unwrap_or_else(PoisonError::into_inner).0.result.take();
        let Some(result) = result else {
            let text = format!("its storage hasn't answered for {} s", limit.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        };
        let _ = thread.join();
        result
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

impl Shared {
    /// Waits for a page that has changed; `None` if there is none and the thread is to end.
    fn next(&self) -> Option<u64> {
        let state = lock(&self.state);
        let state = self.changed.wait_while(state, |state| state.pages.is_empty() && !state.end);
        state.unwrap_or_else(PoisonError::into_inner).pages.pop_first()
    }

    /// Writes what couldn't be written before, and waits until all is on the disk.
    fn write_rest(&self) -> io::Result<()> {
        let State { pages, failed, touched, .. } = std::mem::take(&mut *lock(&self.state));
        let mut all = pages.union(&failed);
        all.try_for_each(|page| self.write(*page))?;
        if touched { self.file.sync() } else { Ok(()) }
    }

    fn write(&self, page: u64) -> io::Result<()> {
        let offset = page.saturating_mul(PAGE_SIZE as u64);
        let mut data = [0; PAGE_SIZE];
        self.memory.read_slice(&mut data, MemoryRegionAddress(offset)).map_err(io::Error::other)?;
        self.file.write(&data, offset)
    }

    fn failed(&self, source: io::Error) -> VariableFileError {
        self.file.error(VariableFileFault::Write(source))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use vm_memory::{GuestAddress, GuestMemoryRegion, MmapRegion};
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn storage_that_hangs_is_not_waited_for_without_end() {
        let file = TempFile::new().unwrap();
        let path: &Path = file.as_path();
        let mapping = MmapRegion::new(PAGE_SIZE).unwrap();
        let memory = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
        assert_eq!(memory.len(), PAGE_SIZE as u64);
        let file = VariableFile::open(path).unwrap().unwrap();
        let writer = Writer::new(Arc::new(file), Arc::new(memory));
        // A thread that is in a write which doesn't return.
        let (end, ended) = mpsc::channel::<()>();
        let hung = thread::spawn(move || _ = ended.recv());
        *lock(&writer.thread) = Thread::Running(hung);
        writer.note(0, 4);
        let error = writer.finish_within(Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Nor a second time, and nothing is written here.
        writer.finish().unwrap();
        assert_eq!(std::fs::metadata(path).unwrap().len(), 0);
        drop((writer, end));
    }
}
