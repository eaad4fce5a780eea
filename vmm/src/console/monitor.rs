//! What a run does with a guest's output beside showing it: looks for texts that end it, and keeps it
//! with times.

use std::io;
use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use devices::console::{Output, Room};
use devices::sync;

use super::file;
use super::lines::Lines;
use super::log::ConsoleLog;
use crate::cli::{Pattern, RunOptions};
use crate::error::Error;
use crate::exit_reason::ExitReason;
use crate::junit::RunReport;
use crate::output;
use crate::waker::Waker;

/// How many bytes wait for the event loop at most; what exceeds them has the thread that prints look
/// for itself.
const MAX_PENDING: usize = 32 << 10;

/// Sees what the consoles print.
pub struct Monitor {
    until: Vec<Pattern>,
    fail_on: Vec<Pattern>,
    state: Mutex<State>,
    /// Keeps the newest output; called with the state locked.
    report: Option<Arc<RunReport>>,
    waker: Arc<Waker>,
}

struct State {
    consoles: Vec<Watched>,
    log: Option<ConsoleLog>,
    found: Option<Found>,
    /// A match was reported.
    over: bool,
}

/// A console, and its output that was not looked at yet.
struct Watched {
    name: &'static str,
    pending: Vec<u8>,
    lines: Lines,
}

/// What was found.
#[derive(Clone, Debug)]
enum Found {
    Until(String),
    FailOn { pattern: String, line: String },
}

impl From<Found> for ExitReason {
    fn from(found: Found) -> Self {
        match found {
            Found::Until(pattern) => Self::Until(pattern),
            Found::FailOn { pattern, line } => Self::FailOn { pattern, line },
        }
    }
}

impl Monitor {
    /// What the options ask for, if anything; `report` gets all output, `waker` wakes the event loop for [`check`](Self::check).
    ///
    /// # Errors
    ///
    /// The log's file can't be opened.
    pub fn new(
        options: &RunOptions,
        started: Instant,
        report: Option<Arc<RunReport>>,
        waker: &Arc<Waker>,
    ) -> Result<Option<Arc<Self>>, Error> {
        let looks = !(options.until.is_empty() && options.fail_on.is_empty());
        if !looks && options.log.is_none() && report.is_none() {
            return Ok(None);
        }
        let named = options.console.is_on() && options.virtio_console.is_on();
        let log = options.log.as_deref().map(|path| open_log(path, started, named)).transpose()?;
        Ok(Some(Arc::new(Self {
            until: options.until.clone(),
            fail_on: options.fail_on.clone(),
            state: Mutex::new(State { consoles: Vec::new(), log, found: None, over: false }),
            report,
            waker: waker.clone(),
        })))
    }

    /// Sees what goes through `output`, which is that of the console with this name.
    pub(super) fn watch(
        self: &Arc<Self>,
        name: &'static str,
        output: Box<dyn Output>,
    ) -> Box<dyn Output> {
        let mut state = sync::lock(&self.state);
        let index = state.consoles.len();
        state.consoles.push(Watched { name, pending: Vec::new(), lines: Lines::default() });
        Box::new(WatchedOutput { monitor: self.clone(), index, output })
    }

    /// Takes output of a console; whether it is to wait before it makes more.
    fn put(&self, index: usize, bytes: &[u8]) -> bool {
        let mut state = sync::lock(&self.state);
        let State { consoles, log, .. } = &mut *state;
        let Some(console) = consoles.get_mut(index) else { return false };
        if let Some(report) = &self.report {
            report.put(bytes);
        }
        let full = log.as_mut().is_some_and(|log| log.put(console.name, bytes));
        if self.looks() && !state.over && state.found.is_none() {
            self.leave(&mut state, index, bytes);
        }
        full
    }

    fn looks(&self) -> bool {
        !(self.until.is_empty() && self.fail_on.is_empty())
    }

    /// Leaves output for the event loop, or looks at it where that has more than enough to do.
    fn leave(&self, state: &mut State, index: usize, bytes: &[u8]) {
        let Some(console) = state.consoles.get_mut(index) else { return };
        let wake = console.pending.is_empty();
        console.pending.extend_from_slice(bytes);
        if console.pending.len() > MAX_PENDING {
            self.look(state);
        }
        if wake || state.found.is_some() {
            self.waker.wake();
        }
    }

    /// Looks at what wasn't looked at yet.
    fn look(&self, state: &mut State) {
        let State { consoles, found, .. } = state;
        for console in consoles {
            if found.is_some() {
                return;
            }
            let pending = mem::take(&mut console.pending);
            if pending.is_empty() {
                continue;
            }
            console.lines.take(&pending, &mut |line| {
                *found = self.find(line);
                found.is_some()
            });
            // A prompt has no end of line behind it.
            if found.is_none() {
                *found = console.lines.unfinished().and_then(|line| self.find(&line));
            }
        }
    }

    /// What ends the run, if this line has it. What fails counts more.
    fn find(&self, line: &str) -> Option<Found> {
        let is_in = |pattern: &&Pattern| pattern.is_in(line);
        if let Some(pattern) = self.fail_on.iter().find(is_in) {
            return Some(Found::FailOn { pattern: pattern.to_string(), line: line.to_owned() });
        }
        self.until.iter().find(is_in).map(|pattern| Found::Until(pattern.to_string()))
    }

    /// Why the run is to end, if the consoles had what it waits for: once.
    pub fn check(&self) -> Option<ExitReason> {
        let mut state = sync::lock(&self.state);
        if mem::replace(&mut state.over, true) {
            return None;
        }
        self.look(&mut state);
        state.over = state.found.is_some();
        state.found.clone().map(ExitReason::from)
    }

    /// Why the run ended, with the last output considered.
    pub fn conclude(&self, reason: ExitReason) -> ExitReason {
        let by_itself = matches!(
            reason,
            ExitReason::PowerOff | ExitReason::Reset | ExitReason::Crash | ExitReason::Timeout(_)
        );
        let mut state = sync::lock(&self.state);
        self.look(&mut state);
        // Also what was found when the guest had ended already.
        let last = state.found.take().filter(|_| by_itself).map(ExitReason::from);
        if let Some(log) = &mut state.log {
            log.finish();
        }
        drop(state);
        match (last, reason) {
            (Some(found), _) => found,
            (None, ExitReason::PowerOff) if !self.until.is_empty() => {
                let patterns: Vec<_> = self.until.iter().map(Pattern::to_string).collect();
                ExitReason::NotFound(patterns.join("`, `"))
            }
            (None, reason) => reason,
        }
    }
}

/// Opens the log's file.
fn open_log(path: &Path, started: Instant, named: bool) -> Result<ConsoleLog, Error> {
    let buffer = output::to_file(file::open(path, "--log ")?, "log");
    Ok(ConsoleLog::new(buffer, started, named))
}

/// Output that the monitor sees.
struct WatchedOutput {
    monitor: Arc<Monitor>,
    index: usize,
    output: Box<dyn Output>,
}

impl Output for WatchedOutput {
    fn put(&mut self, bytes: &[u8]) -> io::Result<Room> {
        let full = self.monitor.put(self.index, bytes);
        let room = self.output.put(bytes)?;
        Ok(if full { Room::Full } else { room })
    }

    fn wait_for_room(&mut self, stop: &dyn Fn() -> bool) {
        // Of all files, the log's among them.
        output::wait_for_room(stop);
        self.output.wait_for_room(stop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use regex_lite::Regex;

    fn monitor(until: &[&str], fail_on: Option<&str>) -> Arc<Monitor> {
        let options = RunOptions {
            until: until.iter().map(|text| Pattern::Text((*text).to_owned())).collect(),
            fail_on: fail_on
                .iter()
                .map(|regex| Pattern::Regex(Regex::new(regex).unwrap()))
                .collect(),
            ..RunOptions::default()
        };
        let waker = Arc::new(Waker::new().unwrap());
        Monitor::new(&options, Instant::now(), None, &waker).unwrap().unwrap()
    }

    fn said(
        until: &[&str],
        fail_on: Option<&str>,
        pieces: &[&str],
    ) -> (Option<ExitReason>, ExitReason) {
        let monitor = monitor(until, fail_on);
        let mut output = monitor.watch("serial", Box::new(Vec::new()));
        pieces
            .iter()
            .for_each(|piece| assert_eq!(output.put(piece.as_bytes()).unwrap(), Room::Left));
        (monitor.check(), monitor.conclude(ExitReason::PowerOff))
    }

    #[test]
    fn a_prompt_is_found_before_its_line_ends() {
        let (found, _) = said(&["login: "], None, &["Debian\r\ndebian lo", "gin: "]);
        assert!(matches!(found, Some(ExitReason::Until(text)) if text == "login: "));
    }

    #[test]
    fn what_fails_counts_more() {
        let fail_on = Some("panic|Oops");
        let (found, _) = said(&["boot"], fail_on, &["booted\nKernel panic - not syncing\n"]);
        assert!(matches!(found, Some(ExitReason::Until(_))), "the first line does");
        let (found, _) = said(&["boot"], fail_on, &["Kernel panic at boot\n"]);
        let Some(ExitReason::FailOn { pattern, line }) = found else { panic!("{found:?}") };
        assert_eq!((&*pattern, &*line), ("/panic|Oops/", "Kernel panic at boot"));
    }

    #[test]
    fn a_power_off_without_the_text_is_no_success() {
        let (found, end) = said(&["login:", "shell"], None, &["no\n"]);
        assert!(found.is_none());
        assert!(matches!(end, ExitReason::NotFound(text) if text == "login:`, `shell"));
        let (_, end) = said(&[], Some("panic"), &["well\n"]);
        assert!(matches!(end, ExitReason::PowerOff));
    }

    #[test]
    fn the_last_words_before_the_end_count() {
        let monitor = monitor(&[], Some("panic"));
        let mut output = monitor.watch("virtio", Box::new(Vec::new()));
        output.put(b"panic").unwrap();
        assert!(matches!(monitor.conclude(ExitReason::Reset), ExitReason::FailOn { .. }));
        output.put(b"panic\n").unwrap();
        assert!(matches!(monitor.conclude(ExitReason::Quit), ExitReason::Quit));
    }

    #[test]
    fn what_was_found_while_the_guest_ended_counts() {
        let (found, end) = said(&["Power down"], None, &["reboot: Power down\n"]);
        assert!(matches!(found, Some(ExitReason::Until(_))));
        assert!(matches!(end, ExitReason::Until(text) if text == "Power down"));
    }

    #[test]
    fn an_event_loop_that_is_late_misses_nothing() {
        let monitor = monitor(&["needle"], None);
        let mut output = monitor.watch("serial", Box::new(Vec::new()));
        output.put(b"a needle\n").unwrap();
        for _ in 0..100 {
            output.put(&[b'x'; 1000]).unwrap();
            let state = sync::lock(&monitor.state);
            assert!(state.consoles.iter().all(|one| one.pending.len() <= MAX_PENDING + 1000));
        }
        assert!(matches!(monitor.check(), Some(ExitReason::Until(_))));
        assert!(monitor.check().is_none());
    }
}
