//! Events on their way to a file: a bounded buffer, filled by whoever has them and emptied by a thread of its
//! own, so that nobody waits for a disk or a reader. What doesn't fit is counted.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::sync;

use super::format::Format;
use super::record::Record;
use super::sink::Sink;

/// How many events wait for the thread at most.
const CAPACITY: usize = 16 << 10;

/// How long the thread lets events gather once there is one: waking it costs more than putting one down.
const GATHER: Duration = Duration::from_millis(20);

/// How long the end waits for a file that takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it waits before it looks again.
const INTERVAL: Duration = Duration::from_millis(100);

/// The events of a trace.
#[derive(Debug)]
pub struct Stream {
    started: Instant,
    /// Only the newest of so many events are kept, until they are asked for.
    last: Option<usize>,
    state: Mutex<State>,
    /// Notified when the thread has something to do.
    filled: Condvar,
    /// Notified when it has done something.
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What comes.
    filling: VecDeque<Record>,
    /// Of one that keeps the newest: those that were asked for, and how many had been left out before them.
    ready: VecDeque<Record>,
    ready_left_out: u64,
    left_out: u64,
    /// What there was no room for since the last that there was.
    lost: u64,
    /// What was lost so far, written or not.
    all_lost: u64,
    /// The thread isn't waiting.
    awake: bool,
    ended: bool,
    /// The thread has ended, or never was one.
    finished: bool,
    /// Nobody waits for it any more.
    abandoned: bool,
}

impl Stream {
    /// One whose times are counted from `started` on; of the `last` events, or all.
    pub fn new(started: Instant, last: Option<usize>) -> Self {
        let capacity = last.unwrap_or(CAPACITY);
        let filling = VecDeque::with_capacity(capacity);
        let ready = VecDeque::with_capacity(if last.is_some() { capacity } else { 0 });
        let state = Mutex::new(State { filling, ready, finished: true, ..State::default() });
        let (filled, written) = Default::default();
        Self { started, last, state, filled, written }
    }

    /// Takes an event. With `ask`, the newest are asked for, with this one.
    pub fn put(&self, mut record: Record, ask: bool) {
        let mut state = self.state();
        // Under the lock: times don't go back.
        let elapsed = self.started.elapsed();
        record.time = nanoseconds(elapsed);
        let is_full = state.filling.len() >= self.last.unwrap_or(CAPACITY);
        if self.last.is_some() {
            if is_full {
                state.filling.pop_front();
                state.left_out = state.left_out.saturating_add(1);
            }
            state.filling.push_back(record);
            if ask {
                state.ask();
                self.filled.notify_one();
            }
        } else if is_full {
            state.lose(1);
        } else {
            state.filling.push_back(record);
            if !state.awake || state.filling.len() == CAPACITY / 2 {
                state.awake = true;
                self.filled.notify_one();
            }
        }
    }

    /// Asks for the newest.
    pub fn ask(&self) {
        if self.last.is_some() {
            self.state().ask();
            self.filled.notify_one();
        }
    }

    /// There will be a thread that [writes](Self::write).
    pub fn begin(&self) {
        self.state().finished = false;
    }

    /// Writes what comes, until the end. What the thread does.
    pub fn write(&self, mut format: Format, sink: &Sink) {
        let mut batch = VecDeque::with_capacity(self.last.unwrap_or(CAPACITY));
        let (mut text, mut events) = (format.header(), 0);
        loop {
            let mut state = self.await_events();
            let ended = state.ended;
            let left_out = std::mem::take(&mut state.ready_left_out);
            let lost = std::mem::take(&mut state.lost);
            let of = &mut *state;
            let from = if self.last.is_some() { &mut of.ready } else { &mut of.filling };
            std::mem::swap(&mut batch, from);
            drop(state);
            if left_out > 0 {
                format.left_out(left_out, &mut text);
            }
            for record in batch.drain(..) {
                format.record(&record, &mut text);
                events += 1;
                if text.len() >= PART {
                    self.hand_over(&mut text, std::mem::take(&mut events), sink);
                }
            }
            if lost > 0 {
                format.lost(lost, &mut text);
            }
            self.hand_over(&mut text, std::mem::take(&mut events), sink);
            if ended {
                break;
            }
        }
        self.state().finished = true;
        self.written.notify_all();
    }

    /// Writes this, which so many events are, and forgets it.
    fn hand_over(&self, text: &mut String, events: u64, sink: &Sink) {
        let written = sink.write(text, || self.state().abandoned);
        if !written {
            let mut state = self.state();
            state.all_lost = state.all_lost.saturating_add(events);
        }
        text.clear();
        self.written.notify_all();
    }

    /// Waits until there is something to write, and a bit longer for more; or the end.
    fn await_events(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        while !state.ended && state.is_empty(self.last.is_some()) {
            state.awake = false;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.awake = true;
        if !state.ended && self.last.is_none() && state.filling.len() < CAPACITY / 2 {
            let waited = self.filled.wait_timeout(state, GATHER);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    /// Has the thread write what is there and end, and waits for that, unless the file takes nothing or
    /// `stop`. How many events were lost.
    pub fn finish(&self, stop: impl Fn() -> bool) -> u64 {
        let mut state = self.state();
        let end = Instant::now() + PATIENCE;
        loop {
            // Those that were asked for before are taken first: else the newest would be lost.
            if !state.ended && state.ready.is_empty() {
                if self.last.is_some() {
                    state.ask();
                }
                state.ended = true;
                self.filled.notify_all();
            }
            if state.finished || Instant::now() >= end || stop() {
                break;
            }
            let waited = self.written.wait_timeout(state, INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        (state.ended, state.abandoned) = (true, true);
        let left = state.filling.len().saturating_add(state.ready.len()) as u64;
        state.all_lost.saturating_add(left)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }

    /// Whether events were asked for that nobody has taken.
    #[cfg(test)]
    pub(super) fn is_asked(&self) -> bool {
        !self.state().ready.is_empty()
    }
}

/// How much is handed to a file at once, in bytes.
const PART: usize = 64 << 10;

impl State {
    fn is_empty(&self, keeps_last: bool) -> bool {
        let records = if keeps_last { &self.ready } else { &self.filling };
        records.is_empty() && self.lost == 0
    }

    fn lose(&mut self, count: u64) {
        self.lost = self.lost.saturating_add(count);
        self.all_lost = self.all_lost.saturating_add(count);
    }

    /// Hands the newest over; those asked for before must have been taken.
    fn ask(&mut self) {
        if self.ready.is_empty() {
            std::mem::swap(&mut self.filling, &mut self.ready);
            self.ready_left_out = std::mem::take(&mut self.left_out);
        } else {
            let left_out = std::mem::take(&mut self.left_out);
            self.lose(left_out.saturating_add(self.filling.len() as u64));
            self.filling.clear();
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos().into())
}

#[cfg(test)]
mod tests;
