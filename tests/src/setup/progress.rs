//! What the person sees while long steps run.
//!
//! On a terminal one line is rewritten in place; elsewhere every phase gets a line, and a line each
//! half minute says how far it is.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::{Error, FileError};

const REDRAW: Duration = Duration::from_millis(200);
const REPORT: Duration = Duration::from_secs(30);

/// All steps of a set-up.
pub(super) struct Progress {
    screen: Arc<Screen>,
    ticker: Option<JoinHandle<()>>,
}

/// What the steps and the thread that draws them share.
struct Screen {
    terminal: bool,
    start: Instant,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    running: Vec<Running>,
    next: u64,
    /// How many questions are on the terminal, which a drawing would wipe away.
    hidden: u32,
    ended: bool,
}

struct Running {
    id: u64,
    name: String,
    phase: String,
    count: Count,
    reported: Instant,
}

enum Count {
    Nothing,
    Text(String),
    /// The size of the files in this directory.
    Growth(PathBuf),
}

impl Progress {
    /// Starts to draw on standard error.
    pub(super) fn start() -> Self {
        let screen = Arc::new(Screen {
            terminal: io::stderr().is_terminal(),
            start: Instant::now(),
            state: Mutex::default(),
            ended: Condvar::new(),
        });
        let drawn = Arc::clone(&screen);
        let ticker = std::thread::spawn(move || drawn.tick());
        Self { screen, ticker: Some(ticker) }
    }

    /// A step of this name, whose output goes to the file `log`.
    pub(super) fn step(&self, name: &str, log: PathBuf) -> Step {
        let mut state = self.screen.lock();
        let id = state.next;
        state.next = id.wrapping_add(1);
        state.running.push(Running {
            id,
            name: name.to_owned(),
            phase: String::new(),
            count: Count::Nothing,
            reported: Instant::now(),
        });
        let screen = Arc::clone(&self.screen);
        Step { screen, id, name: name.to_owned(), log, start: Instant::now() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.screen.lock().ended = true;
        self.screen.ended.notify_all();
        if let Some(ticker) = self.ticker.take() {
            // A ticker that panicked has said so; there is nothing more to draw.
            let _ = ticker.join();
        }
    }
}

impl Screen {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, _state: &mut State, text: &str) {
        let clear = if self.terminal { "\r\x1b[2K" } else { "" };
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(io::stderr(), "{clear}{text}");
    }

    fn tick(&self) {
        let mut state = self.lock();
        while !state.ended {
            if state.hidden > 0 {
                // Somebody is typing.
            } else if self.terminal {
                self.draw(&state);
            } else {
                self.report(&mut state);
            }
            let waited = self.ended.wait_timeout(state, REDRAW);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }

    fn draw(&self, state: &State) {
        let steps: Vec<String> =
            state.running.iter().filter(|r| !r.phase.is_empty()).map(Running::describe).collect();
        if steps.is_empty() {
            return;
        }
        let line = format!("[{}] {}", clock(self.start.elapsed()), steps.join(" | "));
        // Without wrapping, so that a narrow terminal shows one line, cut off.
        let _ = write!(io::stderr(), "\r\x1b[2K\x1b[?7l{line}\x1b[?7h");
    }

    fn report(&self, state: &mut State) {
        let mut lines = Vec::new();
        for running in state.running.iter_mut().filter(|r| !r.phase.is_empty()) {
            if running.reported.elapsed() >= REPORT {
                running.reported = Instant::now();
                lines.push(format!("[{}] {}", clock(self.start.elapsed()), running.describe()));
            }
        }
        for line in lines {
            self.say(state, &line);
        }
    }
}

impl Running {
    fn describe(&self) -> String {
        let (name, phase) = (&self.name, &self.phase);
        match &self.count {
            Count::Nothing => format!("{name}: {phase}"),
            Count::Text(count) => format!("{name}: {phase} {count}"),
            Count::Growth(dir) => format!("{name}: {phase} {} MB", size_of(dir) / 1_000_000),
        }
    }
}

/// One step, such as making QEMU. Until it enters a phase it isn't shown, since there may be
/// nothing to do.
pub(super) struct Step {
    screen: Arc<Screen>,
    id: u64,
    name: String,
    log: PathBuf,
    start: Instant,
}

impl Step {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The file its commands write to.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Empties the log: what follows is a new try.
    pub(super) fn begin_log(&self) -> Result<(), Error> {
        if let Some(dir) = self.log.parent() {
            fs::create_dir_all(dir).at("create", dir)?;
        }
        File::create(&self.log).at("create", &self.log).map(drop)
    }

    /// Enters a phase, such as "compiling".
    pub(super) fn phase(&self, phase: &str) {
        let state = &mut *self.screen.lock();
        let Some(running) = state.running.iter_mut().find(|r| r.id == self.id) else { return };
        running.phase = phase.to_owned();
        running.count = Count::Nothing;
        running.reported = Instant::now();
        if !self.screen.terminal {
            let line = format!("[{}] {}", clock(self.screen.start.elapsed()), running.describe());
            self.screen.say(state, &line);
        }
    }

    /// Says how far the phase is.
    pub(super) fn count(&self, count: String) {
        self.set_count(Count::Text(count));
    }

    /// Shows by the size of the files in `dir` how far the phase is.
    pub(super) fn count_bytes(&self, dir: &Path) {
        self.set_count(Count::Growth(dir.to_owned()));
    }

    /// Says something that stays, under the step's name.
    pub(super) fn say(&self, text: &str) {
        let line = format!("{}: {text}", self.name);
        self.screen.say(&mut self.screen.lock(), &line);
    }

    /// Draws nothing while `work` uses the terminal.
    pub(super) fn hidden<T>(&self, work: impl FnOnce() -> T) -> T {
        self.screen.lock().hidden += 1;
        let result = work();
        self.screen.lock().hidden -= 1;
        result
    }

    /// Says what has been achieved and how long it took.
    pub(super) fn done(&self, text: &str) {
        // What is left is tidying up, which nobody waits for.
        if let Some(running) = self.screen.lock().running.iter_mut().find(|r| r.id == self.id) {
            running.phase.clear();
        }
        self.say(&format!("{text} ({})", clock(self.start.elapsed())));
    }

    fn set_count(&self, count: Count) {
        if let Some(running) = self.screen.lock().running.iter_mut().find(|r| r.id == self.id) {
            running.count = count;
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.screen.lock().running.retain(|r| r.id != self.id);
    }
}

/// The bytes in the files of `dir` and of the directories in it, as far as they can be read.
pub(super) fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .fold(0, u64::saturating_add)
}

/// Minutes and seconds.
pub(super) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_minutes_and_two_digits_of_seconds() {
        for (seconds, text) in [(0, "0:00"), (9, "0:09"), (61, "1:01"), (3600, "60:00")] {
            assert_eq!(clock(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_step_says_its_phase_and_count() {
        let mut running = Running {
            id: 0,
            name: "QEMU".to_owned(),
            phase: "compiling".to_owned(),
            count: Count::Nothing,
            reported: Instant::now(),
        };
        assert_eq!(running.describe(), "QEMU: compiling");
        running.count = Count::Text("3/8".to_owned());
        assert_eq!(running.describe(), "QEMU: compiling 3/8");
        running.count = Count::Growth(PathBuf::from("/nonexistent"));
        assert_eq!(running.describe(), "QEMU: compiling 0 MB");
    }

    #[test]
    fn a_step_that_is_over_is_no_longer_shown() {
        let progress = Progress::start();
        let first = progress.step("first", PathBuf::new());
        let second = progress.step("second", PathBuf::new());
        drop(first);
        let names: Vec<_> = progress.screen.lock().running.iter().map(|r| r.name.clone()).collect();
        assert_eq!(names, ["second"]);
        drop(second);
        assert!(progress.screen.lock().running.is_empty());
    }
}
