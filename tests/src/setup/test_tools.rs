//! What `cargo model test` takes beyond the model: the tools that unit tests call.

use super::cache::Cache;
use super::error::{Error, FileError};
use super::interrupt::Watch;
use super::machine::Machine;
use super::packages;
use super::progress::Progress;

/// Installs what is missing of them. Where there is no apt, the tests say what they miss.
///
/// # Errors
///
/// They can't be installed.
pub fn install() -> Result<(), Error> {
    let _watch = Watch::install().at("watch for signals to", "this process")?;
    let machine = Machine::detect();
    if !machine.is_debian {
        return Ok(());
    }
    let cache = Cache::open()?;
    let progress = Progress::start();
    let step = progress.step("test tools", cache.log("test-tools"));
    let needs: &[_] =
        if machine.is_arm { &[packages::TEST] } else { &[packages::TEST, packages::EMULATE] };
    packages::install(&machine, &cache, &step, needs)
}
