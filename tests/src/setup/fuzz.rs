//! `cargo model fuzz`: builds the fuzz targets with coverage, and has libFuzzer run them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::Cache;
use super::error::{Error, FileError};
use super::machine::Machine;
use super::options::Options;
use super::packages;
use super::process;
use super::progress::{Progress, Step};
use super::signals::SignalHandlers;
use super::toolchain::Toolchain;
use super::workspace;

#[path = "../../fuzz/src/corpus.rs"]
mod corpus;

/// The environment variable that names the target to the program.
const TARGET: &str = "STRAIT_FUZZ_TARGET";

/// What LLVM adds to each piece of code that runs in one go, an edge: a counter, its address, and the
/// operands of comparisons. (libFuzzer's documentation, "Tracing CMP instructions"; clang's
/// "SanitizerCoverage".)
const COVERAGE: &str = "-C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=3 \
     -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
     -C llvm-args=-sanitizer-coverage-pc-table \
     -C llvm-args=-sanitizer-coverage-trace-compares";

/// An input may take so long, and the process so much memory; how long inputs are, and how slowly they
/// get longer.
const BOUNDS: [&str; 4] = ["-timeout=20", "-rss_limit_mb=1024", "-max_len=2048", "-len_control=20"];

/// How a target went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    runs: u64,
    edges: u64,
    inputs: u64,
}

/// Runs the target of this name, or each of them, for `seconds`. With `keep`, the smallest inputs that
/// reach what all reach are written to the corpus in the clone.
///
/// # Errors
///
/// The tools can't be had, the targets don't build, there is no such target, or one fails.
pub fn run(options: &Options, target: Option<&str>, seconds: u64, keep: bool) -> Result<(), Error> {
    let _handlers = SignalHandlers::install().at("watch for signals to", "this process")?;
    let all = corpus::targets().at("read", corpus::directory())?;
    let chosen: Vec<&String> =
        all.iter().filter(|name| target.is_none_or(|target| target == *name)).collect();
    if let (Some(target), []) = (target, chosen.as_slice()) {
        return Err(Error::NoFuzzTarget { wanted: target.to_owned(), targets: all.join(" ") });
    }
    let cache = Cache::open()?;
    let progress = Progress::start();
    let program = build(options, &cache, &progress)?;
    for name in chosen {
        let step = progress.step(name, cache.log(&format!("fuzz-{name}")));
        let fuzzer = Fuzzer::new(&program, name, &step)?;
        let outcome = fuzzer.run(seconds)?;
        let Outcome { runs, edges, inputs } = outcome;
        step.say(&format!("{runs} runs, {edges} edges, {inputs} inputs, nothing found"));
        if keep {
            let size = fuzzer.keep()?;
            step.say(&format!("kept {size} bytes in {}", corpus::path(name).display()));
        }
    }
    Ok(())
}

/// Builds the program with all targets.
fn build(options: &Options, cache: &Cache, progress: &Progress) -> Result<PathBuf, Error> {
    let machine = Machine::detect();
    let step = progress.step("fuzz targets", cache.log("fuzz"));
    let (toolchain, mut needs) = Toolchain::choose(&machine, &step, options.cross_linker())?;
    needs.push(packages::FUZZ);
    if machine.is_debian {
        packages::install(&machine, cache, &step, &needs)?;
    }
    toolchain.check_version()?;
    step.begin_log()?;
    step.phase("compiling");
    let host = toolchain.host()?;
    let variable = host.to_uppercase().replace('-', "_");
    let mut cargo = toolchain.cargo("build");
    // With a target named, the flags aren't those of build scripts.
    cargo.args(["--target", &host, "--profile", "fuzz"]);
    cargo.args(["--package", "fuzz", "--features", "libfuzzer", "--bin", "fuzz"]);
    cargo.env(format!("CARGO_TARGET_{variable}_RUSTFLAGS"), COVERAGE);
    process::run(&step, &mut cargo, |_| {})?;
    Ok(workspace::target_dir().join(host).join("fuzz/fuzz"))
}

/// libFuzzer with one target.
struct Fuzzer<'a> {
    program: &'a Path,
    name: &'a str,
    step: &'a Step,
    /// Inputs that reach something, of this run and of earlier ones.
    inputs: PathBuf,
    /// Where it writes what fails.
    failures: PathBuf,
}

impl<'a> Fuzzer<'a> {
    /// With the inputs that are kept, and those of earlier runs.
    fn new(program: &'a Path, name: &'a str, step: &'a Step) -> Result<Self, Error> {
        let directory = workspace::target_dir().join("fuzz").join(name);
        let [inputs, failures] = ["inputs", "failures"].map(|part| directory.join(part));
        for directory in [&inputs, &failures] {
            fs::create_dir_all(directory).at("create", directory)?;
        }
        let kept = corpus::read(name).at("read", corpus::path(name))?;
        for (number, input) in kept.iter().enumerate() {
            let path = inputs.join(format!("kept-{number}"));
            fs::write(&path, input).at("write", &path)?;
        }
        step.begin_log()?;
        Ok(Self { program, name, step, inputs, failures })
    }

    fn command(&self) -> Command {
        let mut command = process::command(self.program);
        command.args(BOUNDS).env(TARGET, self.name).env("RUST_BACKTRACE", "1");
        command
    }

    fn run(&self, seconds: u64) -> Result<Outcome, Error> {
        self.step.phase("running");
        let mut command = self.command();
        command.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
        command.arg(format!("-artifact_prefix={}/", self.failures.display()));
        command.arg(&self.inputs);
        let (mut outcome, mut failure) = (Outcome::default(), None);
        let result = process::run(self.step, &mut command, |line| {
            if outcome.read(line) {
                self.step.count(format!("{} runs, {} edges", outcome.runs, outcome.edges));
            }
            if let Some((_, path)) = line.split_once("Test unit written to ") {
                failure = Some(PathBuf::from(path));
            }
        });
        match (result, failure) {
            (Err(Error::Failed { log, .. }), Some(input)) => {
                let name = self.name.to_owned();
                let hex = fs::read(&input).map(|bytes| corpus::encode(&bytes)).unwrap_or_default();
                let regressions = corpus::regressions(self.name);
                Err(Error::FuzzFailure { name, input, hex, regressions, log })
            }
            (Err(error), _) => Err(error),
            (Ok(()), _) => Ok(outcome),
        }
    }

    /// Writes the smallest inputs that reach together what all reach, as far as there is room for;
    /// answers their size in bytes.
    fn keep(&self) -> Result<usize, Error> {
        self.step.phase("choosing");
        let chosen = self.inputs.with_file_name("chosen");
        let _ = fs::remove_dir_all(&chosen);
        fs::create_dir_all(&chosen).at("create", &chosen)?;
        let mut command = self.command();
        process::run(
            self.step,
            command.arg("-set_cover_merge=1").args([&chosen, &self.inputs]),
            |_| {},
        )?;
        let mut inputs = Vec::new();
        for entry in fs::read_dir(&chosen).at("read", &chosen)?.flatten() {
            inputs.push(fs::read(entry.path()).at("read", entry.path())?);
        }
        inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        let mut size = 0;
        let fits = inputs.into_iter().take_while(|input| {
            size += input.len();
            size <= corpus::KEPT_SIZE
        });
        let kept: Vec<Vec<u8>> = fits.collect();
        let path = corpus::path(self.name);
        let lines: String = kept.iter().map(|input| corpus::encode(input) + "\n").collect();
        fs::write(&path, lines).at("write", &path)?;
        Ok(kept.iter().map(Vec::len).sum())
    }
}

impl Outcome {
    /// Takes in a line such as `#4096 pulse cov: 120 ft: 300 corp: 12/90b …`, or of the statistics at
    /// the end; whether it is one.
    fn read(&mut self, line: &str) -> bool {
        if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
            self.runs = runs.trim().parse().unwrap_or(self.runs);
            return true;
        }
        let Some(status) = line.strip_prefix('#') else { return false };
        let mut words = status.split_whitespace();
        let Some(runs) = words.next().and_then(|runs| runs.parse().ok()) else { return false };
        self.runs = runs;
        while let Some(word) = words.next() {
            let number =
                |word: Option<&str>| word.and_then(|word| word.split('/').next()?.parse().ok());
            match word {
                "cov:" => self.edges = number(words.next()).unwrap_or(self.edges),
                "corp:" => self.inputs = number(words.next()).unwrap_or(self.inputs),
                _ => {}
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_libfuzzer_is_read() {
        let mut outcome = Outcome::default();
        assert!(!outcome.read("INFO: Seed: 1"));
        assert!(
            outcome
                .read("#4096\tpulse  cov: 120 ft: 300 corp: 12/90b lim: 8 exec/s: 2048 rss: 9Mb")
        );
        assert_eq!(outcome, Outcome { runs: 4096, edges: 120, inputs: 12 });
        assert!(outcome.read("stat::number_of_executed_units: 5000"));
        assert_eq!(outcome.runs, 5000);
    }
}
