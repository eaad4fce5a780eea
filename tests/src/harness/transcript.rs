//! What everybody said, with time stamps.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::failure::Failure;

/// The environment variable that names the directory of transcripts.
const DIRECTORY: &str = "STRAIT_TRANSCRIPTS";

/// The environment variable that names a file to which each host appends, when it is switched off,
/// for how many milliseconds it ran, how many its CPUs took of this machine's, and the name of its test.
pub const TIMES: &str = "STRAIT_TEST_TIMES";

/// Everything said by the host, by its programs and by the harness, line by line.
///
/// It is written to a file as it happens, so that even a run that is killed leaves it behind;
/// the file of a test that passes is removed.
pub struct Transcript {
    start: Instant,
    test: String,
    path: PathBuf,
    failed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lines: String,
    /// The beginning of a line not yet ended, by speaker.
    open: BTreeMap<String, Vec<u8>>,
    file: Option<File>,
}

impl Transcript {
    /// An empty transcript whose clock starts now, named after the running test.
    pub(super) fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let directory = std::env::var_os(DIRECTORY)
            .map_or_else(|| std::env::temp_dir().join("strait-transcripts"), PathBuf::from);
        let test = std::thread::current().name().unwrap_or("main").to_owned();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = test.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let path = directory.join(format!("{file}-{}-{number}.log", std::process::id()));
        // A transcript that can't be kept on disk is still printed.
        let file = fs::create_dir_all(&directory).and_then(|()| File::create(&path)).ok();
        let state = Mutex::new(State { file, ..State::default() });
        Self { start: Instant::now(), test, path, failed: AtomicBool::new(false), state }
    }

    /// Notes bytes said by `speaker`; lines are stamped when they end.
    pub(super) fn record(&self, speaker: &str, bytes: &[u8]) {
        let mut state = self.lock();
        let mut pending = state.open.remove(speaker).unwrap_or_default();
        pending.extend_from_slice(bytes);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let rest = pending.split_off(end + 1);
            self.write(&mut state, speaker, &pending);
            pending = rest;
        }
        if !pending.is_empty() {
            state.open.insert(speaker.to_owned(), pending);
        }
    }

    /// Notes what the harness did.
    pub(super) fn note(&self, text: &str) {
        let mut state = self.lock();
        self.write(&mut state, "test", text.as_bytes());
    }

    /// Notes why the test failed, and that the transcript is worth keeping.
    pub(super) fn failure(&self, reason: impl Into<String>) -> Failure {
        let reason = reason.into();
        self.note(&reason);
        self.failed.store(true, Ordering::Relaxed);
        Failure::new(reason)
    }

    /// Ends the transcript: shows it, and where it is kept, if the test failed or is panicking;
    /// else removes the file. The host took `cpu_time` of this machine.
    pub(super) fn end(&self, cpu_time: Duration) {
        if let Some(times) = std::env::var_os(TIMES) {
            let (ran, cpu_time) = (self.start.elapsed().as_millis(), cpu_time.as_millis());
            let line = format!("{ran} {cpu_time} {}\n", self.test);
            let file = File::options().create(true).append(true).open(times);
            // The times are for information: a test doesn't fail for want of them.
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
        if self.failed.load(Ordering::Relaxed) || std::thread::panicking() {
            eprintln!("{}transcript: {}", self.text(), self.path.display());
        } else {
            self.forget();
        }
    }

    /// Everything so far, lines that have not ended included.
    pub(super) fn text(&self) -> String {
        let mut state = self.lock();
        for (speaker, bytes) in std::mem::take(&mut state.open) {
            self.write(&mut state, &speaker, &bytes);
        }
        state.lines.clone()
    }

    /// The file that holds it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn forget(&self) {
        if self.lock().file.take().is_some() {
            // Whoever removed it before has done the work.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn write(&self, state: &mut State, speaker: &str, line: &[u8]) {
        let time = self.start.elapsed().as_secs_f64();
        let start = state.lines.len();
        for part in String::from_utf8_lossy(line).trim_end_matches(['\n', '\r']).split('\n') {
            let visible: String = part.chars().flat_map(visible).collect();
            // Writing to a String can't fail.
            let _ = writeln!(state.lines, "{time:9.3} {speaker:>8} | {visible}");
        }
        if let (Some(file), Some(new)) = (&mut state.file, state.lines.get(start..)) {
            // A full disk must not fail a test that has nothing to do with it.
            let _ = file.write_all(new.as_bytes());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A character as a reader of logs wants it: control characters spelt out.
fn visible(c: char) -> impl Iterator<Item = char> {
    let spelt = (c.is_control() && c != '\t').then(|| c.escape_default());
    let plain = spelt.is_none().then_some(c);
    spelt.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::{Duration, Transcript};

    fn without_times(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.get(10..)).map(str::trim_start).collect()
    }

    #[test]
    fn lines_of_interleaved_sources_stay_whole() {
        let transcript = Transcript::start();
        transcript.record("host", b"Boot");
        transcript.record("guest", b"one\ntw");
        transcript.record("host", b"ing\r\n");
        transcript.record("guest", b"o\n");
        transcript.record("host", b"unfinished");
        let text = transcript.text();
        assert_eq!(
            without_times(&text),
            ["guest | one", "host | Booting", "guest | two", "host | unfinished"]
        );
        transcript.forget();
    }

    #[test]
    fn control_characters_are_spelt_out() {
        let transcript = Transcript::start();
        transcript.record("host", b"\x1b[0m\xff\n");
        assert_eq!(without_times(&transcript.text()), ["host | \\u{1b}[0m\u{fffd}"]);
        transcript.forget();
    }

    #[test]
    fn the_file_of_a_passed_test_is_removed() {
        let transcript = Transcript::start();
        transcript.note("begun");
        let kept = std::fs::read_to_string(transcript.path()).expect("the transcript's file");
        assert_eq!(without_times(&kept), ["test | begun"]);
        transcript.end(Duration::ZERO);
        assert!(!transcript.path().exists());
    }

    #[test]
    fn the_file_of_a_failed_test_is_kept() {
        let transcript = Transcript::start();
        assert_eq!(transcript.failure("no luck").to_string(), "no luck");
        transcript.end(Duration::ZERO);
        let kept = std::fs::read_to_string(transcript.path()).expect("the transcript's file");
        assert_eq!(without_times(&kept), ["test | no luck"]);
        transcript.forget();
    }
}
