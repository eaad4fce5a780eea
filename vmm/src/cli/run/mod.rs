//! `strait run`.

mod combinations;
mod config;
mod options;

use std::str::FromStr;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};
use log::LevelFilter;

use self::config::ConfigFile;
use super::block::block;
use super::console::{SerialKind, console, serial};
use super::control;
use super::cpu;
use super::gdb::gdb;
use super::net;
use super::owner;
use super::passt::{behind_passt, passt};
use super::pattern::pattern;
use super::reset;
use super::sandbox;
use super::values::{GivenOnce, read};
use super::values::{backend, descriptor};
use super::{
    Command, FirmwareOptions, KernelOptions, MemoryOptions, NetOptions, ShareOptions, TraceOptions,
    VfioPciOptions, VfioPlatformOptions, VfioUserOptions, VhostUserOptions, usage_error,
};
use crate::error::Error;

pub use options::RunOptions;

pub(super) const HELP: &str = include_str!("../help/run.txt");

/// Parses what follows `run`.
pub(super) fn parse(parser: &mut Parser) -> Result<Command, Error> {
    let typed = parser.clone();
    let mut options = RunOptions::default();
    let mut once = GivenOnce::default();
    if let Taken::Help = options.take_all(parser, &mut once)? {
        return Ok(Command::Print(HELP.into()));
    }
    let mut console_is_given = once.has("--console");
    let mut serial_is_given = once.has("--serial");
    let (file, print_config) = (options.config.take(), options.print_config);
    // Nothing else takes them back where a file has them.
    let only_plans = options.dry_run && !options.bind && !options.force;
    let file = file.as_deref().map(ConfigFile::read).transpose()?;
    if let Some(file) = &file {
        // The file's come first, so that those typed take their place.
        let mut of_file = GivenOnce::default();
        options = RunOptions::default();
        file.take(&mut options, &mut of_file)?;
        console_is_given |= of_file.has("--console");
        serial_is_given |= of_file.has("--serial");
        options.take_all(&mut typed.clone(), &mut GivenOnce::default())?;
        options.config = None;
        if only_plans {
            (options.bind, options.force) = (false, false);
        }
    }
    if options.kernel.path.as_os_str().is_empty() && options.firmware.is_none() {
        return Err(Error::usage("no kernel given").help("strait run --kernel Image"));
    }
    if options.firmware.is_some() && !serial_is_given {
        // The one that firmware for QEMU's virt has a driver for.
        options.serial = SerialKind::Pl011;
    }
    combinations::check(&mut options, console_is_given)
        .map_err(|error| file.iter().fold(error, |error, file| file.note(error)))?;
    if print_config {
        return config::print(typed, file, only_plans).map(Command::Print);
    }
    Ok(Command::Run(Box::new(options)))
}

enum Taken {
    Option,
    Help,
    Nothing,
}

impl RunOptions {
    /// Takes all options, or those up to one that asks for help.
    fn take_all(&mut self, parser: &mut Parser, once: &mut GivenOnce) -> Result<Taken, Error> {
        loop {
            match self.take(parser, once).map_err(|e| usage_error(&e, "run"))? {
                Taken::Option => (),
                taken => return Ok(taken),
            }
        }
    }

    /// Takes the next option and its value.
    fn take(&mut self, parser: &mut Parser, once: &mut GivenOnce) -> Result<Taken, lexopt::Error> {
        let Some(arg) = parser.next()? else { return Ok(Taken::Nothing) };
        match arg {
            Arg::Long("kernel") => {
                let read = KernelOptions::read(once.value("--kernel", parser)?);
                self.kernel = read.map_err(|why| format!("--kernel: {why}"))?;
            }
            Arg::Long("firmware") => {
                let read = FirmwareOptions::read(once.value("--firmware", parser)?);
                self.firmware = Some(read.map_err(|why| format!("--firmware: {why}"))?);
            }
            Arg::Long("initrd") => self.initrd = Some(once.value("--initrd", parser)?.into()),
            Arg::Long("cmdline") => self.cmdline = Some(once.value("--cmdline", parser)?.string()?),
            Arg::Long("no-default-cmdline") => self.default_cmdline = false,
            Arg::Long("cpus") => self.cpus = once.parsed("--cpus", parser, cpus)?,
            Arg::Long("memory") => {
                self.memory = once.parsed("--memory", parser, MemoryOptions::from_str)?;
            }
            Arg::Long("vfio-platform") => {
                let device =
                    read("--vfio-platform", parser.value()?, VfioPlatformOptions::from_str)?;
                self.vfio_platform.push(device);
            }
            Arg::Long("vfio-pci") => {
                let function = read("--vfio-pci", parser.value()?, VfioPciOptions::from_str)?;
                self.vfio_pci.push(function);
            }
            Arg::Long("vfio-user") => {
                let device = read("--vfio-user", parser.value()?, VfioUserOptions::from_str)?;
                self.vfio_user.push(device);
            }
            Arg::Long("block") => self.block.push(read("--block", parser.value()?, block)?),
            Arg::Long("net") => {
                let value = parser.value()?;
                match value.to_str().and_then(behind_passt).map(str::to_owned) {
                    Some(rest) => self.passt.push(read("--net passt", rest.into(), passt)?),
                    None => self.net.push(read("--net", value, NetOptions::from_str)?),
                }
            }
            Arg::Long("vsock") => self.vsock = Some(once.parsed("--vsock", parser, net::vsock)?),
            Arg::Long("vhost-user") => {
                let device = read("--vhost-user", parser.value()?, VhostUserOptions::from_str)?;
                self.vhost_user.push(device);
            }
            Arg::Long("share") => {
                self.share.push(read("--share", parser.value()?, ShareOptions::from_str)?);
            }
            Arg::Long("iommu") => self.iommu.backend = once.parsed("--iommu", parser, backend)?,
            Arg::Long("iommufd-fd") => {
                self.iommu.iommufd = Some(once.parsed("--iommufd-fd", parser, descriptor)?);
            }
            Arg::Long("virtio-access-platform") => self.virtio_access_platform = true,
            Arg::Long("balloon") => self.balloon = once.parsed("--balloon", parser, balloon)?,
            Arg::Long("bind") => self.bind = true,
            Arg::Long("force") => self.force = true,
            Arg::Long("cpu-features") => {
                self.cpu_features = once.parsed("--cpu-features", parser, cpu::features)?;
            }
            Arg::Long("gic") => self.gic = once.parsed("--gic", parser, cpu::gic)?,
            Arg::Long("serial") => self.serial = once.parsed("--serial", parser, serial)?,
            Arg::Long("console") => self.console = once.parsed("--console", parser, console)?,
            Arg::Long("virtio-console") => {
                self.virtio_console = once.parsed("--virtio-console", parser, console)?;
            }
            Arg::Long("timeout") => {
                self.timeout = Some(once.parsed("--timeout", parser, seconds)?)
            }
            Arg::Long("grace") => self.grace = Some(once.parsed("--grace", parser, seconds)?),
            Arg::Long("control") => {
                self.control = Some(once.parsed("--control", parser, control::control)?);
            }
            Arg::Long("register") => {
                self.register = Some(once.parsed("--register", parser, control::machine_name)?);
            }
            Arg::Long("on-reset") => {
                self.on_reset = once.parsed("--on-reset", parser, reset::on_reset)?;
            }
            Arg::Long("until") => self.until.push(read("--until", parser.value()?, pattern)?),
            Arg::Long("fail-on") => self.fail_on.push(read("--fail-on", parser.value()?, pattern)?),
            Arg::Long("log") => self.log = Some(once.value("--log", parser)?.into()),
            Arg::Long("config") => self.config = Some(once.value("--config", parser)?.into()),
            Arg::Long("print-config") => self.print_config = true,
            Arg::Long("dry-run") => self.dry_run = true,
            Arg::Long("json") => self.json = true,
            Arg::Long("dtb-overlay") => self.dtb_overlays.push(parser.value()?.into()),
            Arg::Long("dump-dtb") => self.dump_dtb = Some(once.value("--dump-dtb", parser)?.into()),
            Arg::Long("stats") => self.stats = Some(once.value("--stats", parser)?.into()),
            Arg::Long("junit") => self.junit = Some(once.value("--junit", parser)?.into()),
            Arg::Long("trace") => {
                self.trace.push(read("--trace", parser.value()?, TraceOptions::from_str)?);
            }
            Arg::Long("gdb") => self.gdb = Some(once.parsed("--gdb", parser, gdb)?),
            Arg::Long("sandbox") => {
                self.sandbox = once.parsed("--sandbox", parser, sandbox::mode)?
            }
            Arg::Long("user") => self.user = Some(once.parsed("--user", parser, owner::owner)?),
            Arg::Long("log-level") => self.log_level = once.parsed("--log-level", parser, level)?,
            Arg::Long("help") | Arg::Short('h') => return Ok(Taken::Help),
            other => return Err(other.unexpected()),
        }
        Ok(Taken::Option)
    }
}

fn cpus(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "a whole number above 0 is needed".into())
}

fn balloon(text: &str) -> Result<bool, String> {
    match text {
        "free-page-reporting" => Ok(true),
        _ => Err("free-page-reporting is needed: there is nothing else that it does".into()),
    }
}

fn level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| "a level is off, error, warn, info, debug or trace".into())
}

/// The longest time: it fits clocks and timers of the host, whenever it begins.
const MAX_TIME: Duration = Duration::from_secs(i32::MAX.unsigned_abs() as u64);

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // To a timer 0 is no time at all.
    time.filter(|time| !time.is_zero() && *time <= MAX_TIME).ok_or_else(|| {
        format!("a number of seconds above 0, and up to {}, is needed", MAX_TIME.as_secs())
    })
}

#[cfg(test)]
mod tests;
