//! Child processes: with an environment of their own, a log, a count, and an end.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::error::{Error, FileError};
use super::progress::Step;
use super::signals::{self, Group};

/// How many of a failed command's last lines are shown.
const TAIL: usize = 20;

/// Variables that change what a build makes, from `cargo run` or from the person's shell.
const UNWANTED: [&str; 22] = [
    "ARCH",
    "CARGO",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CFLAGS",
    "CPPFLAGS",
    "CROSS_COMPILE",
    "CXXFLAGS",
    "KBUILD_OUTPUT",
    "KCFLAGS",
    "LDFLAGS",
    "LD_LIBRARY_PATH",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "RUSTC",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "RUST_RECURSION_COUNT",
    "STRAIT_MODEL",
];
/// More of them: what `cargo run` tells of the package that it runs.
const UNWANTED_PREFIXES: [&str; 4] =
    ["CARGO_BIN_", "CARGO_CRATE_", "CARGO_MANIFEST_", "CARGO_PKG_"];

/// A command that finds neither this tool's own environment nor the terminal's language.
pub(super) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_unwanted) {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

fn is_unwanted(name: &str) -> bool {
    UNWANTED.contains(&name) || UNWANTED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the command is one that may ask on the terminal, and so stays in the foreground.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProcessGroup {
    /// In a process group of its own, which ends when this run is interrupted.
    Own,
    /// In this run's group: the terminal's Ctrl-C reaches it without us.
    Foreground,
}

/// Runs a command to its end. Both its outputs go to the step's log, and each line to `on_line`.
///
/// # Errors
///
/// The command can't be started, fails, or is interrupted.
pub(super) fn run(
    step: &Step,
    command: &mut Command,
    on_line: impl FnMut(&str),
) -> Result<(), Error> {
    run_in(ProcessGroup::Own, TAIL, step, command, on_line)
}

/// As [`run`], for a command whose last `lines` lines are shown when it fails.
pub(super) fn run_showing(
    lines: usize,
    step: &Step,
    command: &mut Command,
    on_line: impl FnMut(&str),
) -> Result<(), Error> {
    run_in(ProcessGroup::Own, lines, step, command, on_line)
}

/// As [`run`], for a command that acts for another user (sudo): it can't be signalled by us, and
/// may ask for a password.
pub(super) fn run_in_foreground(step: &Step, command: &mut Command) -> Result<(), Error> {
    run_in(ProcessGroup::Foreground, TAIL, step, command, |_| {})
}

fn run_in(
    process_group: ProcessGroup,
    shown: usize,
    step: &Step,
    command: &mut Command,
    mut on_line: impl FnMut(&str),
) -> Result<(), Error> {
    if signals::requested() {
        return Err(Error::Interrupted);
    }
    let path = step.log();
    let mut log = OpenOptions::new().create(true).append(true).open(path).at("open", path)?;
    writeln!(log, "$ {}", text_of(command)).at("write", path)?;
    let start = |source| Error::Start { program: program_of(command), source };
    let (reader, writer) = io::pipe().map_err(start)?;
    let other_writer = writer.try_clone().map_err(start)?;
    command.stdout(writer).stderr(other_writer);
    if process_group == ProcessGroup::Own {
        command.process_group(0);
        signals::end_with_parent(command);
    }
    let spawned = command.spawn();
    // The command holds the pipe's write ends: without this the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = match spawned {
        Ok(child) => child,
        Err(source) => return Err(Error::Start { program: program_of(command), source }),
    };
    let group = (process_group == ProcessGroup::Own).then(|| Group::register(child.id()));
    let tail = follow(reader, shown, &mut log, path, &mut on_line);
    let status = child.wait();
    drop(group);
    let tail = tail?;
    let status = status.map_err(|source| Error::Start { program: program_of(command), source })?;
    if status.success() {
        return Ok(());
    }
    if signals::requested() {
        return Err(Error::Interrupted);
    }
    Err(Error::Failed {
        step: step.name().to_owned(),
        command: text_of(command),
        status,
        tail: tail.into_iter().map(|line| format!("  | {line}\n")).collect(),
        log: path.to_owned(),
    })
}

/// Copies lines to the log until the command closes its output; returns the last ones.
fn follow(
    output: impl io::Read,
    shown: usize,
    log: &mut impl Write,
    path: &Path,
    on_line: &mut impl FnMut(&str),
) -> Result<VecDeque<String>, Error> {
    let mut output = BufReader::new(output);
    let mut tail = VecDeque::new();
    let mut line = Vec::new();
    let mut written = Ok(());
    loop {
        line.clear();
        if output.read_until(b'\n', &mut line).at("read the output for", path)? == 0 {
            break;
        }
        // A full disk must not stop the reading: the command would wait for ever.
        written = written.and_then(|()| log.write_all(&line));
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        on_line(text);
        if tail.len() == shown {
            tail.pop_front();
        }
        tail.push_back(text.to_owned());
    }
    written.at("write", path)?;
    Ok(tail)
}

/// Runs a short command and returns what it says on its standard output.
///
/// # Errors
///
/// The command can't be started or fails.
pub(super) fn capture(command: &mut Command) -> Result<String, Error> {
    let output =
        command.output().map_err(|source| Error::Start { program: program_of(command), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(Error::Query { command: text_of(command), status: output.status, said })
}

/// Whether a short command can be run and succeeds.
pub(super) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Whether a program of this name is on the search path.
pub(super) fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn program_of(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// The command as a person would type it.
pub(super) fn text_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::progress::Progress;
    use std::fs;

    /// Runs a shell script as a step; returns the result, the lines seen, and the log.
    fn sh(name: &str, script: &str) -> (Result<(), Error>, Vec<String>, String) {
        let file = format!("process-test-{}-{name}.log", std::process::id());
        let log = std::env::temp_dir().join(file);
        let progress = Progress::start();
        let step = progress.step(name, log.clone());
        step.begin_log().unwrap();
        let mut seen = Vec::new();
        let result = run(&step, command("sh").args(["-c", script]), |line| {
            seen.push(line.to_owned());
        });
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        fs::remove_file(&log).unwrap();
        (result, seen, text)
    }

    #[test]
    fn both_outputs_are_seen_and_logged_below_the_command() {
        let (result, seen, log) = sh("both", "echo out; echo err >&2");
        result.unwrap();
        assert_eq!(seen, ["out", "err"]);
        assert_eq!(log, "$ sh -c echo out; echo err >&2\nout\nerr\n");
    }

    #[test]
    fn a_failure_shows_the_last_lines_and_where_all_are() {
        let (result, _, log) = sh("fails", "seq 1 50; exit 3");
        let Err(Error::Failed { tail, status, log: path, .. }) = result else { panic!() };
        let lines: Vec<_> = tail.lines().collect();
        assert_eq!(lines.len(), TAIL);
        assert_eq!((lines.first(), lines.last()), (Some(&"  | 31"), Some(&"  | 50")));
        assert_eq!(status.code(), Some(3));
        assert!(path.ends_with(format!("process-test-{}-fails.log", std::process::id())));
        assert!(log.ends_with("\n50\n"));
    }

    #[test]
    fn output_that_is_not_utf8_is_logged() {
        let (result, seen, _) = sh("bytes", r"printf 'a\377b\nlast'");
        result.unwrap();
        assert_eq!(seen, ["a\u{fffd}b", "last"]);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = capture(&mut command("/nonexistent/program")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/program"), "{error}");
    }

    #[test]
    fn what_cargo_run_sets_does_not_reach_children() {
        for name in
            ["CARGO", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"]
        {
            assert!(is_unwanted(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "PATH", "HTTPS_PROXY"] {
            assert!(!is_unwanted(name), "{name}");
        }
    }
}
