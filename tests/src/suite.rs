//! `cargo model test`: every test, unit and system.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::artifacts;
use crate::harness::TIMES;
use crate::setup::Model;
use crate::setup::test_tools::TestTools;
use crate::setup::workspace;

/// The environment variable that lets tests take their time.
pub const SOAK: &str = "STRAIT_SOAK";

/// The environment variable that names the directory in which Python finds Shrinkwrap.
pub const SHRINKWRAP: &str = "STRAIT_SHRINKWRAP";

/// The environment variable that names the directory with the vhost-user daemons for the model.
pub const DAEMONS: &str = "STRAIT_DAEMONS";

/// The environment variable that names the directory with the tools of labs.
pub const LABS: &str = "STRAIT_LABS";

/// The environment variable that names Debian's package of Linux' sources.
pub const LINUX: &str = "STRAIT_LINUX";

/// The environment variable that names the directory of compiled device trees of boards.
const BOARDS: &str = "STRAIT_BOARDS";

/// The environment variable that says how many tests run at a time.
const THREADS: &str = "RUST_TEST_THREADS";

/// How many of the slowest system tests are named at the end.
const SLOWEST: usize = 20;

/// Runs the tests whose names contain `filter`, or all; `soak` runs long tests at full length.
///
/// # Errors
///
/// cargo can't be run.
pub fn run(
    model: &Model,
    tools: &TestTools,
    filter: Option<&str>,
    soak: bool,
) -> Result<ExitCode, Box<dyn Error>> {
    let started = Instant::now();
    let mut sum = Tally::default();
    let mut not_good = Vec::new();
    let times = workspace::target_dir().join("test-times");
    fs::write(&times, "")?;
    for (name, mut command, default_filter) in parts(model, tools, &times, soak) {
        println!("\n== {name}");
        command.arg("--").args(filter.or(default_filter));
        if soak {
            command.arg("--include-ignored");
        }
        let part_started = Instant::now();
        let part = tally(&mut command)?;
        println!("== {name}: {part}, {}", seconds(part_started.elapsed()));
        if !part.is_good() {
            not_good.push(format!("{name}: {part}"));
        }
        sum.add(&part);
    }
    let times = fs::read_to_string(&times)?;
    let tests = by_test(&times);
    for (test, Times { ran, cpu }) in tests.iter().take(SLOWEST) {
        println!("  {:5.1} s, {:5.1} s of CPU  {test}", ran.as_secs_f64(), cpu.as_secs_f64());
    }
    let cpu: Duration = tests.iter().map(|(_, times)| times.cpu).sum();
    println!("  the model took {} of CPU", seconds(cpu));
    println!("\nall tests: {}", seconds(started.elapsed()));
    println!("{sum}");
    for part in not_good {
        println!("  {part}");
    }
    if let (Some(filter), 0) = (filter, sum.passed + sum.failed) {
        eprintln!("error: no test's name contains `{filter}`\n  help: cargo model test");
        return Ok(ExitCode::FAILURE);
    }
    Ok(if sum.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The cargo commands that run the tests, with what to call them and which of their tests to run.
fn parts(
    model: &Model,
    tools: &TestTools,
    times: &Path,
    soak: bool,
) -> Vec<(&'static str, Command, Option<&'static str>)> {
    let toolchain = &model.toolchain;
    let mut here = toolchain.cargo("test");
    here.arg("--no-fail-fast");
    let mut arm = toolchain.cargo_for_target("test");
    arm.args(["--no-fail-fast", "--package", "boot", "--package", "arch", "--package", "vmm"]);
    arm.args(["--lib", "--bins"]);
    // Loading a kernel is built for arm64 alone: the rest behaves alike, and emulated it takes long.
    let mut kernels = toolchain.cargo_for_target("test");
    kernels.args(["--package", "boot", "--test", "boot"]);
    let mut system = toolchain.cargo("test");
    system.args([
        "--no-fail-fast",
        "--package",
        "tests",
        "--features",
        "system",
        "--test",
        "system",
    ]);
    system.env(artifacts::VARIABLE, &model.description).env(TIMES, times);
    // Tests also wait, for time to pass and for what happens once: one test more than there are CPUs
    // keeps these at work.
    if env::var_os(THREADS).is_none() {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        system.env(THREADS, cpus.saturating_add(1).to_string());
    }
    if let Some(directory) = &tools.shrinkwrap {
        system.env(SHRINKWRAP, directory);
    }
    if let Some(directory) = &tools.daemons {
        system.env(DAEMONS, directory);
    }
    if let Some(directory) = &tools.labs {
        system.env(LABS, directory);
    }
    if let Some(package) = &tools.linux {
        system.env(LINUX, package);
    }
    if soak {
        system.env(SOAK, "1");
    }
    let mut parts = vec![
        ("unit tests on this machine", here, None),
        ("unit tests for arm64", arm, None),
        ("loading kernels on arm64", kernels, Some("kernel::")),
    ];
    match &model.boards {
        Some(directory) => {
            let mut boards = toolchain.cargo("test");
            boards.args(["--package", "devices", "--features", "boards"]);
            boards.args(["--test", "boards"]).env(BOARDS, directory);
            // So that it says how many devices there were.
            boards.env("RUST_TEST_NOCAPTURE", "1");
            if soak {
                boards.env(SOAK, "1");
            }
            parts.push(("the devices of many boards", boards, None));
        }
        None => println!("the devices of many boards aren't tried: they come with the kernel"),
    }
    parts.push(("system tests in the model", system, None));
    parts
}

/// What the hosts of a test took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    /// How long they ran.
    ran: Duration,
    /// The CPU time of this machine.
    cpu: Duration,
}

/// The system tests with what their hosts took, of lines as [`TIMES`] says, the longest first.
fn by_test(lines: &str) -> Vec<(&str, Times)> {
    let mut sums = BTreeMap::<&str, Times>::new();
    for line in lines.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(ran), Some(cpu), Some(test)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let milliseconds = |text: &str| Duration::from_millis(text.parse().unwrap_or_default());
        let sum = sums.entry(test).or_default();
        sum.ran += milliseconds(ran);
        sum.cpu += milliseconds(cpu);
    }
    let mut tests: Vec<_> = sums.into_iter().collect();
    tests.sort_by_key(|(_, times)| Reverse(times.ran));
    tests
}

/// How a number of tests went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    /// cargo failed though no test did: something did not build, or crashed.
    broken: bool,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.broken |= other.broken;
    }

    fn is_good(&self) -> bool {
        self.failed == 0 && !self.broken
    }

    /// Takes in a line such as `test result: ok. 5 passed; 0 failed; 0 ignored; …`.
    fn read(&mut self, line: &str) {
        let Some(rest) = line.trim().strip_prefix("test result: ") else { return };
        let Some((_, counts)) = rest.split_once(". ") else { return };
        for count in counts.split("; ") {
            match count.split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                _ => (),
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.broken { write!(f, ", not all could be run") } else { Ok(()) }
    }
}

/// Runs a cargo command, shows what it says, and counts.
fn tally(command: &mut Command) -> io::Result<Tally> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        let mut here = io::stdout().lock();
        // Bytes: a guest's console may say anything.
        while reader.read_until(b'\n', &mut line)? > 0 {
            tally.read(&String::from_utf8_lossy(&line));
            here.write_all(&line)?;
            line.clear();
        }
    }
    let status = child.wait()?;
    tally.broken = !status.success() && tally.failed == 0;
    Ok(tally)
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_over_test_binaries() {
        let mut tally = Tally::default();
        for line in [
            "test a::b ... ok",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 3 filtered out",
            "test result: nonsense",
        ] {
            tally.read(line);
        }
        assert_eq!(tally, Tally { passed: 12, failed: 2, broken: false });
        assert!(!tally.is_good());
    }

    #[test]
    fn the_hosts_of_a_test_are_added_up_and_the_slowest_comes_first() {
        let lines = "1000 700 a\n2500 100 b::c\n2000 900 a\nnonsense\n";
        let times =
            |ran, cpu| Times { ran: Duration::from_millis(ran), cpu: Duration::from_millis(cpu) };
        assert_eq!(by_test(lines), [("a", times(3000, 1600)), ("b::c", times(2500, 100))]);
    }

    #[test]
    fn a_command_that_fails_without_a_failed_test_is_no_success() {
        let tally = tally(&mut Command::new("false")).unwrap();
        assert_eq!(tally, Tally { passed: 0, failed: 0, broken: true });
        assert!(!tally.is_good());
    }
}
