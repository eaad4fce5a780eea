//! The command line: options as values, resolved against the host later.

mod block;
mod check;
mod console;
mod control;
mod cpu;
mod device;
mod firmware;
mod gdb;
mod kernel;
mod memory;
mod net;
mod owner;
mod passt;
mod pattern;
mod pci;
mod platform;
mod reset;
mod run;
mod sandbox;
mod suggest;
#[cfg(test)]
mod tests;
mod trace;
mod values;
mod vhost_user;

pub use boot::size::Size;
pub use check::CheckOptions;
pub use console::{ConsoleKind, SerialKind};
pub use cpu::{GicChoice, GicVersion, ItsChoice};
pub use device::{DeviceOptions, DeviceVerb};
pub use firmware::FirmwareOptions;
pub use gdb::{GdbAddress, GdbOptions};
pub use kernel::KernelOptions;
pub use memory::MemoryOptions;
pub use net::NetOptions;
pub use passt::PasstOptions;
pub use pattern::Pattern;
pub use pci::{VfioPciOptions, VfioUserOptions};
pub use platform::{RegionAddress, ScmiMode, VfioPlatformOptions};
pub use reset::OnReset;
pub use run::RunOptions;
pub use sandbox::SandboxMode;
pub use trace::{TraceFormat, TraceOptions, TraceRegister};
pub use vhost_user::{ShareCache, ShareOptions, ShareSandbox, VhostUserOptions};

use lexopt::{Arg, Parser};

use crate::error::Error;

const HELP: &str = include_str!("help/strait.txt");

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
    match parser.next().map_err(|e| usage_error(&e, ""))? {
        Some(Arg::Value(word)) if word == "run" => run::parse(&mut parser),
        Some(Arg::Value(word)) if word == "device" => device::parse(&mut parser),
        Some(Arg::Value(word)) if word == "check" => check::parse(&mut parser),
        Some(Arg::Long("help") | Arg::Short('h')) => Ok(Command::Print(HELP.into())),
        Some(Arg::Value(word)) if word == "help" => Ok(Command::Print(HELP.into())),
        Some(Arg::Long("version") | Arg::Short('V')) => {
            Ok(Command::Print(concat!("strait ", env!("CARGO_PKG_VERSION"), "\n").into()))
        }
        Some(arg) => Err(usage_error(&arg.unexpected(), "")),
        None => Err(Error::usage("no command given").help("strait run --kernel Image")),
    }
}

/// The error of a command line that makes no sense to `command`.
#[cold]
fn usage_error(error: &lexopt::Error, command: &str) -> Error {
    let space = if command.is_empty() { "" } else { " " };
    let typed = match error {
        lexopt::Error::UnexpectedOption(option) => Some(option.clone()),
        lexopt::Error::UnexpectedArgument(word) => Some(word.to_string_lossy().into_owned()),
        _ => None,
    };
    let instead = typed.and_then(|typed| suggest::suggestion(&typed, command));
    let all = format!("strait{space}{command} --help");
    let help = instead.map_or(all.clone(), |instead| format!("{instead}\n{all}"));
    Error::usage(error.to_string()).help(help)
}
