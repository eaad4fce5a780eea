//! `strait run`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use arch::CpuFeatures;
use devices::vfio::assign::DeviceRef;
use devices::vfio::iommu::{Backend, IommuOptions};
use devices::virtio::block::BlockOptions;
use lexopt::{Arg, Parser, ValueExt};
use log::LevelFilter;

use super::block::block;
use super::console::{ConsoleKind, console};
use super::cpu::{self, GicChoice};
use super::net;
use super::passt::{behind_passt, passt};
use super::sandbox::{self, SandboxMode};
use super::values::{GivenOnce, read};
use super::values::{backend, descriptor};
use super::{
    Command, MemoryOptions, NetOptions, PasstOptions, ShareOptions, VfioPciOptions,
    VfioPlatformOptions, VfioUserOptions, VhostUserOptions, usage_error,
};
use crate::error::Error;

pub(super) const HELP: &str = include_str!("help/run.txt");

/// What a guest is made of.
#[derive(Debug)]
pub struct RunOptions {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// Kernel parameters.
    pub cmdline: Option<String>,
    /// Put the machine's own in front of them.
    pub default_cmdline: bool,
    /// vCPUs, at least 1.
    pub cpus: u64,
    /// RAM.
    pub memory: MemoryOptions,
    /// Platform devices to assign.
    pub vfio_platform: Vec<VfioPlatformOptions>,
    /// The way to the IOMMU.
    pub iommu: IommuOptions,
    /// PCI functions to assign.
    pub vfio_pci: Vec<VfioPciOptions>,
    /// PCI devices of other processes.
    pub vfio_user: Vec<VfioUserOptions>,
    /// Disks.
    pub block: Vec<BlockOptions>,
    /// Network devices.
    pub net: Vec<NetOptions>,
    /// Those whose other end is a passt.
    pub passt: Vec<PasstOptions>,
    /// The address of its sockets.
    pub vsock: Option<u64>,
    /// Virtio devices of other processes.
    pub vhost_user: Vec<VhostUserOptions>,
    /// Directories of the host.
    pub share: Vec<ShareOptions>,
    /// Whether memory that the guest doesn't use is given back.
    pub balloon: bool,
    /// Bind those devices for the time of the run.
    pub bind: bool,
    /// Bind also those that the host uses.
    pub force: bool,
    /// What the vCPUs may have of the host's.
    pub cpu_features: CpuFeatures,
    /// The interrupt controller.
    pub gic: GicChoice,
    /// Where the serial console is.
    pub console: ConsoleKind,
    /// Where the virtio console is.
    pub virtio_console: ConsoleKind,
    /// When the run ends by itself.
    pub timeout: Option<Duration>,
    /// Only print the plan.
    pub dry_run: bool,
    /// As JSON.
    pub json: bool,
    /// Overlays for the device tree, in this order.
    pub dtb_overlays: Vec<PathBuf>,
    /// Where the device tree is written.
    pub dump_dtb: Option<PathBuf>,
    /// Where counters are written.
    pub stats: Option<PathBuf>,
    /// What is done with what a guest could use against the host.
    pub sandbox: SandboxMode,
    /// What is logged.
    pub log_level: LevelFilter,
}

/// Parses what follows `run`.
pub(super) fn parse(parser: &mut Parser) -> Result<Command, Error> {
    let mut options = RunOptions {
        kernel: PathBuf::new(),
        initrd: None,
        cmdline: None,
        default_cmdline: true,
        cpus: 1,
        memory: MemoryOptions::new(256 << 20),
        vfio_platform: Vec::new(),
        iommu: IommuOptions::default(),
        vfio_pci: Vec::new(),
        vfio_user: Vec::new(),
        block: Vec::new(),
        net: Vec::new(),
        passt: Vec::new(),
        vsock: None,
        vhost_user: Vec::new(),
        share: Vec::new(),
        balloon: false,
        bind: false,
        force: false,
        cpu_features: CpuFeatures::ALL,
        gic: GicChoice::default(),
        console: ConsoleKind::Stdio,
        virtio_console: ConsoleKind::Off,
        timeout: None,
        dry_run: false,
        json: false,
        dtb_overlays: Vec::new(),
        dump_dtb: None,
        stats: None,
        sandbox: SandboxMode::default(),
        log_level: LevelFilter::Warn,
    };
    let mut once = GivenOnce::default();
    loop {
        match options.take(parser, &mut once).map_err(|e| usage_error(&e, "run"))? {
            Taken::Option => (),
            Taken::Help => return Ok(Command::Print(HELP.into())),
            Taken::Nothing => break,
        }
    }
    if options.kernel.as_os_str().is_empty() {
        return Err(Error::usage("no kernel given").help("strait run --kernel Image"));
    }
    check_passed(&options)?;
    check_consoles(&mut options, once.has("--console"))?;
    check_balloon(&options)?;
    if options.bind && options.dry_run {
        return Err(Error::usage("--dry-run changes no drivers, so it can't --bind")
            .help("--dry-run alone: devices needn't be bound for it"));
    }
    if options.force && !options.bind {
        return Err(Error::usage("--force is for --bind").help("--bind --force"));
    }
    if options.json && !options.dry_run {
        return Err(
            Error::usage("--json: a run prints nothing of its own").help("--dry-run --json")
        );
    }
    Ok(Command::Run(Box::new(options)))
}

/// Checks that the consoles go together. The serial port gives way where it `is_given` nothing.
fn check_consoles(options: &mut RunOptions, is_given: bool) -> Result<(), Error> {
    if options.virtio_console != ConsoleKind::Stdio || options.console != ConsoleKind::Stdio {
        return Ok(());
    }
    if is_given {
        return Err(Error::usage("--console stdio and --virtio-console stdio: there is one")
            .help("--console off, or another of them"));
    }
    options.console = ConsoleKind::Off;
    Ok(())
}

/// Checks that descriptors go together with the other options.
fn check_passed(options: &RunOptions) -> Result<(), Error> {
    let device = options.devices().any(|which| matches!(which, DeviceRef::Descriptor(_)));
    if device && options.bind {
        return Err(Error::usage("--bind binds devices by name, not by descriptor (fd=)")
            .help("strait device bind NAME, and then whoever opens it"));
    }
    if (device || options.iommu.iommufd.is_some())
        && options.iommu.backend == Some(Backend::Container)
    {
        return Err(Error::usage("--iommu container: fd= and --iommufd-fd are for iommufd")
            .help("--iommu iommufd"));
    }
    Ok(())
}

/// Checks that memory can be given back.
fn check_balloon(options: &RunOptions) -> Result<(), Error> {
    let MemoryOptions { pages, .. } = options.memory;
    if options.balloon && (options.devices().next().is_some() || !options.vfio_user.is_empty()) {
        return Err(Error::usage(
            "--balloon: all of the guest's RAM stays where it is for the DMA of its assigned devices, \
             so none of it can be given back",
        )
        .help("--balloon for guests without assigned devices"));
    }
    if options.balloon && pages.are_reserved() {
        return Err(Error::usage(format!(
            "--balloon: --memory {}: reserved huge pages are the guest's alone, and not given back",
            options.memory
        ))
        .help("hugepages=thp"));
    }
    Ok(())
}

enum Taken {
    Option,
    Help,
    Nothing,
}

impl RunOptions {
    /// The devices to assign.
    fn devices(&self) -> impl Iterator<Item = &DeviceRef> {
        let described = self.vfio_platform.iter().map(|device| &device.which);
        described.chain(self.vfio_pci.iter().map(|function| &function.which))
    }

    /// The devices to assign that are given by name.
    pub fn device_names(&self) -> Vec<&str> {
        self.devices().filter_map(DeviceRef::name).collect()
    }

    /// Other processes map the guest's RAM.
    pub fn shares_ram(&self) -> bool {
        self.has_processes() || !self.vfio_user.is_empty()
    }

    /// Other processes work on virtio devices.
    pub fn has_processes(&self) -> bool {
        !(self.vhost_user.is_empty() && self.share.is_empty() && self.passt.is_empty())
    }

    /// Takes the next option and its value.
    fn take(&mut self, parser: &mut Parser, once: &mut GivenOnce) -> Result<Taken, lexopt::Error> {
        let Some(arg) = parser.next()? else { return Ok(Taken::Nothing) };
        match arg {
            Arg::Long("kernel") => self.kernel = once.value("--kernel", parser)?.into(),
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
            Arg::Long("balloon") => self.balloon = once.parsed("--balloon", parser, balloon)?,
            Arg::Long("bind") => self.bind = true,
            Arg::Long("force") => self.force = true,
            Arg::Long("cpu-features") => {
                self.cpu_features = once.parsed("--cpu-features", parser, cpu::features)?;
            }
            Arg::Long("gic") => self.gic = once.parsed("--gic", parser, cpu::gic)?,
            Arg::Long("console") => self.console = once.parsed("--console", parser, console)?,
            Arg::Long("virtio-console") => {
                self.virtio_console = once.parsed("--virtio-console", parser, console)?;
            }
            Arg::Long("timeout") => {
                self.timeout = Some(once.parsed("--timeout", parser, seconds)?)
            }
            Arg::Long("dry-run") => self.dry_run = true,
            Arg::Long("json") => self.json = true,
            Arg::Long("dtb-overlay") => self.dtb_overlays.push(parser.value()?.into()),
            Arg::Long("dump-dtb") => self.dump_dtb = Some(once.value("--dump-dtb", parser)?.into()),
            Arg::Long("stats") => self.stats = Some(once.value("--stats", parser)?.into()),
            Arg::Long("sandbox") => {
                self.sandbox = once.parsed("--sandbox", parser, sandbox::mode)?
            }
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

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| *seconds > 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a timeout is a number of seconds above 0".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<RunOptions, Error> {
        let words = ["run", "--kernel", "Image"].iter().chain(arguments);
        match super::super::parse(Parser::from_args(words))? {
            Command::Run(options) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_kernel_is_enough() {
        let options = run(&[]).unwrap();
        assert_eq!((options.cpus, options.memory), (1, MemoryOptions::new(256 << 20)));
    }

    #[test]
    fn devices_may_be_repeated() {
        let options = run(&["--vfio-platform", "a", "--vfio-platform", "b,quiesce=off"]).unwrap();
        let which: Vec<_> = options.vfio_platform.into_iter().map(|device| device.which).collect();
        assert_eq!(which, ["a", "b"].map(DeviceRef::from));
        let both = ["--vfio-pci", "05:00.0,mmap=off", "--vfio-platform", "a", "--vfio-pci", "c"];
        assert_eq!(run(&both).unwrap().device_names(), ["a", "05:00.0", "c"]);
    }

    #[test]
    fn descriptors_are_for_iommufd_and_are_bound_already() {
        let options = run(&["--vfio-platform", "fd=0", "--iommufd-fd", "1"]).unwrap();
        assert_eq!(options.iommu, IommuOptions { iommufd: Some(1), ..Default::default() });
        let cases: [&[&str]; 6] = [
            &["--vfio-platform", "fd=0", "--bind"],
            &["--vfio-platform", "fd=0", "--iommu", "container"],
            &["--vfio-pci", "fd=0", "--bind"],
            &["--vfio-pci", "fd=0", "--iommu", "container"],
            &["--iommu", "container", "--iommufd-fd", "0"],
            &["--iommufd-fd", "1048576"],
        ];
        for arguments in cases {
            assert_eq!(run(arguments).unwrap_err().exit_status(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn a_balloon_is_for_memory_that_can_be_given_back() {
        let balloon = ["--balloon", "free-page-reporting"];
        assert!(run(&balloon).unwrap().balloon && !run(&[]).unwrap().balloon);
        for (others, why) in [
            (["--vfio-platform", "a"], "DMA"),
            (["--vfio-pci", "05:00.0"], "DMA"),
            (["--vfio-user", "/a"], "DMA"),
            (["--memory", "1G,hugepages=2M"], "--memory 1G,hugepages=2M: reserved huge pages"),
        ] {
            let report = run(&[balloon, others].concat()).unwrap_err().report();
            assert!(report.contains(why), "{report}");
        }
        run(&[balloon, ["--memory", "1G,hugepages=thp"]].concat()).unwrap();
    }

    #[test]
    fn wrong_values_are_refused() {
        for arguments in [
            ["--cpus", ""],
            ["--cpus", "0"],
            ["--cpus", "-1"],
            ["--memory", "lots"],
            ["--gic", "4"],
            ["--cpu-features", "sme"],
            ["--timeout", "0"],
            ["--timeout", "nan"],
            ["--timeout", "inf"],
            ["--vfio-platform", ""],
            ["--vfio-user", ""],
            ["--block", ""],
            ["--net", "tap0"],
            ["--vsock", "3"],
            ["--vhost-user", ""],
            ["--share", "src"],
            ["--iommu", "smmu"],
            ["--iommufd-fd", "-1"],
            ["--log-level", "loud"],
            ["--console", "tv"],
            ["--balloon", "64M"],
            ["--no-such-option", "1"],
            ["--json", "--gic=3"],
            ["--dry-run=yes", "--dry-run"],
            ["stray", "--dry-run"],
            ["--bind", "--dry-run"],
            ["--force", "--gic=3"],
        ] {
            assert!(run(&arguments).unwrap_err().exit_status() == 2, "{arguments:?}");
        }
    }

    #[test]
    fn standard_input_is_one_console_s() {
        let consoles = |arguments: &[&str]| {
            run(arguments).map(|options| (options.console, options.virtio_console))
        };
        use ConsoleKind::{Off, Pty, Stdio};
        assert_eq!(consoles(&[]).unwrap(), (Stdio, Off));
        assert_eq!(consoles(&["--virtio-console", "pty"]).unwrap(), (Stdio, Pty));
        assert_eq!(consoles(&["--virtio-console", "stdio"]).unwrap(), (Off, Stdio));
        let both = ["--virtio-console", "stdio", "--console", "pty"];
        assert_eq!(consoles(&both).unwrap(), (Pty, Stdio));
        let both = ["--virtio-console", "stdio", "--console", "stdio"];
        assert_eq!(consoles(&both).unwrap_err().exit_status(), 2);
    }

    #[test]
    fn of_two_values_none_is_taken() {
        for (option, first, second) in [
            ("--kernel", "a", "b"),
            ("--initrd", "a", "b"),
            ("--cmdline", "quiet", "debug"),
            ("--cpus", "1", "1"),
            ("--memory", "64M", "128M"),
            ("--iommu", "auto", "container"),
            ("--iommufd-fd", "0", "1"),
            ("--vsock", "cid=3", "cid=4"),
            ("--gic", "2", "3"),
            ("--balloon", "free-page-reporting", "free-page-reporting"),
            ("--console", "off", "stdio"),
            ("--virtio-console", "pty", "off"),
            ("--timeout", "1", "2"),
            ("--dump-dtb", "a", "b"),
            ("--stats", "a", "b"),
            ("--log-level", "off", "info"),
        ] {
            let error = run(&[option, first, option, second]).unwrap_err();
            // A kernel is there already.
            let first = if option == "--kernel" { "Image" } else { first };
            let second = if option == "--kernel" { "a" } else { second };
            let text = format!("{option} is given twice, as `{first}` and as `{second}`");
            assert_eq!((error.message(), error.exit_status()), (text.as_str(), 2));
        }
    }
}
