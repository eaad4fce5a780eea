//! The thread that writes a bank's changes to its file, so that no vCPU waits for the host's disk.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use vm_memory::{Bytes, GuestRegionMmap, MemoryRegionAddress};

use crate::ratelimit::LogLimit;
use crate::sync::lock;
use crate::thread_kind::ThreadKind;

use super::variables::{VariableFile, VariableFileError, VariableFileFault};

/// What is written at a time, in bytes.
const PAGE_SIZE: usize = 4 << 10;

/// The thread's stack in bytes.
const STACK_SIZE: usize = 128 << 10;

/// Writes changes to a file.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
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
        })?;
        *lock(&self.thread) = Some(thread);
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

    /// Ends the thread, and waits until all is on the disk.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub(super) fn finish(&self) -> Result<(), VariableFileError> {
        lock(&self.shared.state).end = true;
        self.shared.changed.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
        // What it failed at is tried again; without a thread, all of it.
        let failed = |e| self.shared.failed(e);
        let State { pages, failed: again, touched, .. } =
            std::mem::take(&mut *lock(&self.shared.state));
        let mut all = pages.union(&again);
        all.try_for_each(|page| self.shared.write(*page)).map_err(failed)?;
        if touched { self.shared.file.sync().map_err(failed) } else { Ok(()) }
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
