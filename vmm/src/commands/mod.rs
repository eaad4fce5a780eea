//! What strait is asked to do.

pub mod check;
pub mod device;
mod print;
#[cfg(target_arch = "aarch64")]
pub mod run;

use crate::cli::Command;
use crate::error::Error;
use crate::output;

/// Does what the command line asks for, and returns the exit status.
///
/// What `run` doesn't use is marked `#[cold]`, here and in the crates: the linker keeps it apart, and
/// starting a guest reads fewer pages of the program. What it does use is put together by `run.ld`.
///
/// # Errors
///
/// As from each of the commands.
pub fn execute(command: Command) -> Result<u8, Error> {
    match command {
        #[cfg(target_arch = "aarch64")]
        Command::Run(options) => run::run(&options),
        #[cfg(not(target_arch = "aarch64"))]
        Command::Run(_) => Err(Error::new("strait runs guests on 64-bit Arm hosts").help(
            "`cargo model build` cross-builds it, `cargo model demo` runs it in the system model",
        )),
        Command::Device(options) => device::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Print(text) => output::print(&text).map(|()| 0),
    }
}
