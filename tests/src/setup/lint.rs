//! `cargo model lint`: what a change must pass before its tests count.

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

/// How many lines of a failed check are shown.
const MAX_SHOWN_LINES: usize = 500;
/// What denies clippy's warnings.
const DENY: [&str; 3] = ["--", "-D", "warnings"];

/// Checks format, lints and documentation of the whole workspace: for 64-bit Arm everything, lints
/// also for this machine of what builds on any.
///
/// # Errors
///
/// A check fails, or the tools can't be had.
pub fn run(options: &Options) -> Result<(), Error> {
    let _handlers = SignalHandlers::install().at("watch for signals to", "this process")?;
    let machine = Machine::detect();
    let cache = Cache::open()?;
    let progress = Progress::start();
    let step = progress.step("Rust for arm64", cache.log("rust"));
    let (toolchain, needs) = Toolchain::choose(&machine, &step, options.cross_linker())?;
    if machine.is_debian {
        packages::install(&machine, &cache, &step, &needs)?;
    }
    toolchain.add_linters(&machine, &cache, &step)?;
    toolchain.check_version()?;
    drop(step);
    let check = |name: &str, command: &mut Command| {
        let step = progress.step(name, cache.log("lint"));
        checked(&step, command)
    };
    check("format", toolchain.fmt().args(["--all", "--", "--check"]))?;
    let mut all = toolchain.clippy_for_target();
    check(
        "clippy for arm64",
        all.args(["--workspace", "--all-targets", "--features", "tests/system,fuzz/engine"])
            .args(DENY),
    )?;
    let mut doc = toolchain.cargo_for_target("doc");
    doc.args(["--no-deps", "--document-private-items", "--workspace"]);
    check("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    if !machine.is_arm {
        check("clippy for this machine", toolchain.clippy().arg("--all-targets").args(DENY))?;
    }
    Ok(())
}

fn checked(step: &Step, command: &mut Command) -> Result<(), Error> {
    step.begin_log()?;
    step.phase("checking");
    process::run_showing(MAX_SHOWN_LINES, step, command, |_| {})?;
    step.done("clean");
    Ok(())
}
