//! The command line: options as values, resolved against the host later.

#[cfg(test)]
mod advice;
mod check;
mod cpu;
mod device;
mod once;
mod owner;
mod pci;
mod platform;
mod run;
mod size;
mod suggest;
mod vfio;
mod vfio_user;

pub use check::CheckOptions;
pub use cpu::{GicChoice, GicVersion, ItsChoice};
pub use device::{DeviceOptions, DeviceVerb};
pub use pci::PciOptions;
pub use platform::{PlatformOptions, RegionAddress};
pub use run::{ConsoleKind, RunOptions};
pub use size::Size;
pub use vfio_user::VfioUserOptions;

use lexopt::{Arg, Parser};

use crate::error::Error;

const HELP: &str = "\
strait gives a guest real devices of a 64-bit Arm SoC: a KVM virtual machine monitor.

Usage: strait COMMAND [OPTIONS]

       strait check                     what this host lacks, and what mends it
       strait device list               its devices
       sudo strait device bind NAME     take one from its driver
       strait run --kernel Image --initrd rootfs.cpio.gz --vfio-platform NAME

Commands:
  run       Start a guest
  device    Look at, bind, unbind and test the host's devices
  check     Find out what this host has and lacks for device assignment

`strait COMMAND --help` has all of each.

Options:
  --help, -h       Print this
  --version, -V    Print the version
";

/// What the person wants.
#[derive(Debug)]
pub enum Command {
    /// Start a guest.
    Run(Box<RunOptions>),
    /// Look at, bind, unbind or test devices of the host.
    Device(DeviceOptions),
    /// Look at the host.
    Check(CheckOptions),
    /// Print this text.
    Print(String),
}

/// Parses the command line.
///
/// # Errors
///
/// It makes no sense; the error says what is wrong with which word.
pub fn parse(mut parser: Parser) -> Result<Command, Error> {
    match parser.next().map_err(|e| wrong(&e, ""))? {
        Some(Arg::Value(word)) if word == "run" => run::parse(&mut parser),
        Some(Arg::Value(word)) if word == "device" => device::parse(&mut parser),
        Some(Arg::Value(word)) if word == "check" => check::parse(&mut parser),
        Some(Arg::Long("help") | Arg::Short('h')) => Ok(Command::Print(HELP.into())),
        Some(Arg::Value(word)) if word == "help" => Ok(Command::Print(HELP.into())),
        Some(Arg::Long("version") | Arg::Short('V')) => {
            Ok(Command::Print(concat!("strait ", env!("CARGO_PKG_VERSION"), "\n").into()))
        }
        Some(arg) => Err(wrong(&arg.unexpected(), "")),
        None => Err(Error::usage("no command given").help("strait run --kernel Image")),
    }
}

/// The error of a command line that makes no sense to `command`.
#[cold]
fn wrong(error: &lexopt::Error, command: &str) -> Error {
    let space = if command.is_empty() { "" } else { " " };
    let typed = match error {
        lexopt::Error::UnexpectedOption(option) => Some(option.clone()),
        lexopt::Error::UnexpectedArgument(word) => Some(word.to_string_lossy().into_owned()),
        _ => None,
    };
    let instead = typed.and_then(|typed| suggest::instead(&typed, command));
    let all = format!("strait{space}{command} --help");
    let help = instead.map_or(all.clone(), |instead| format!("{instead}\n{all}"));
    Error::usage(error.to_string()).help(help)
}
