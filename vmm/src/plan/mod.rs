//! Options + what the host has → what the machine will be. Nothing on the host changes, but for the
//! devices themselves: opening one makes VFIO reset it where it can.

pub mod describe;
mod ram;

use boot::help::Help;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arch::layout::MAX_GICV3_CPUS;
use arch::{CpuFeatures, RamPages, layout};
use boot::cmdline::Cmdline;
use boot::fdt::overlay::Overlay;
use boot::file::{BootFile, Role};
use boot::initrd::Initrd;
use boot::kernel::Kernel;
use boot::layout::{BootLayout, MAX_DTB_SIZE, Ram};
use devices::pci::SlotAllocator;
use devices::vfio::fd_limit;

use crate::allocator::Allocator;
use crate::assigned::AssignedDevices;
use crate::cli::{ConsoleKind, GicChoice, OnReset, RunOptions, ScmiMode, SerialKind};
use crate::error::Error;
use crate::flash::FlashPlan;
use crate::interrupts::LineMonitor;
use crate::limits;
use crate::trace::{self, TracePlan};
use crate::vhost_user::Backends;
use crate::virtio::VirtioDevices;

/// The descriptors that a device takes before it is known what it has: its file and its group's, or
/// its server's socket and the memory that it lends.
const DESCRIPTORS_OF_DEVICE: u64 = 2;

/// The descriptors of a console that isn't standard input and output: what is listened on, the client
/// and the next one, and eventfds.
const DESCRIPTORS_OF_CONSOLE: u64 = 6;

/// The descriptors of those who control a machine from outside.
const DESCRIPTORS_OF_CONTROL: u64 = 20;

/// What a machine will be.
pub struct MachinePlan {
    /// vCPUs.
    pub cpus: u64,
    /// RAM, in guest physical addresses.
    pub ram: Ram,
    /// The host's pages that it is made of.
    pub pages: RamPages,
    /// Where kernel, initrd and device tree go.
    pub boot: BootLayout,
    /// The kernel command line.
    pub cmdline: Cmdline,
    /// What of the host's CPUs its vCPUs may have.
    pub features: CpuFeatures,
    /// Which interrupt controller.
    pub gic: GicChoice,
    /// Which serial port it has.
    pub serial: SerialKind,
    /// Where the console is.
    pub console: ConsoleKind,
    /// Where the virtio console is.
    pub virtio_console: ConsoleKind,
    /// Whether RAM is a file, which other processes map.
    pub shared_ram: bool,
    /// Whether it has a PCI host, for the functions it is given.
    pub pci: bool,
    /// How many root ports that has, each with a bus.
    pub root_ports: u8,
    /// Above everything in its address space but a PCI host's window for 64-bit BARs (GPA).
    pub end: u64,
    /// How many SPIs its devices need.
    pub spis: u32,
    /// SPIs behind those for messages of PCI functions, which a GICv2 needs.
    pub message_spis: Range<u32>,
    /// The overlays for the device tree.
    pub overlays: Vec<Overlay>,
    /// How many descriptors it takes at most.
    pub descriptors: u64,
    /// How long the guest may run.
    pub timeout: Option<Duration>,
    /// How long it has after its power button was pressed; `None`: it has none.
    pub grace: Option<Duration>,
    /// Where it is controlled from outside.
    pub control: Option<PathBuf>,
    /// The name by which systemd-machined lists it.
    pub register: Option<String>,
    /// What becomes of it when it asks for a reset.
    pub on_reset: OnReset,
}

/// What was opened while planning.
pub struct Opened {
    /// The kernel, if it begins with one.
    pub kernel: Option<Kernel>,
    /// Its flash, if it begins with firmware.
    pub flash: Option<FlashPlan>,
    /// The initial RAM disk.
    pub initrd: Option<Initrd>,
    /// The devices that the guest is given.
    pub assigned: AssignedDevices,
    /// Its virtio devices.
    pub virtio: VirtioDevices,
    /// What is recorded of the devices.
    pub traces: Vec<TracePlan>,
}

/// Resolves options against the host, on which programs that serve devices were `started`, but for a
/// dry run.
///
/// # Errors
///
/// Whatever can't work, as far as it can be known without changing anything.
pub fn resolve(options: &RunOptions, backends: Backends) -> Result<(MachinePlan, Opened), Error> {
    if options.cpus > MAX_GICV3_CPUS {
        return Err(Error::usage(format!(
            "--cpus {}: a guest has at most {MAX_GICV3_CPUS}",
            options.cpus
        ))
        .help(format!("--cpus {MAX_GICV3_CPUS}")));
    }
    let ram = ram::plan(options.memory, options.shares_ram())?;
    let flash = options.firmware.as_ref().map(FlashPlan::new).transpose()?;
    let kernel = match &flash {
        Some(_) => None,
        None => Some(Kernel::open(&options.kernel.path, options.kernel.at)?),
    };
    let cmdline =
        Cmdline::compose(&default_cmdline(options, kernel.as_ref()), options.cmdline.as_deref())
            .map_err(|e| Error::usage(e.to_string()).maybe_help(e.help()))?;
    let is_root = cmdline.has_ram_disk_root();
    let initrd = options.initrd.as_deref().map(|path| Initrd::open(path, is_root)).transpose()?;
    let boot = match &kernel {
        Some(kernel) => {
            let placement = kernel.placement(ram.base, ram.size)?;
            let initrd_size = initrd.as_ref().map(Initrd::size);
            boot::layout::layout(ram, placement, MAX_DTB_SIZE, initrd_size)?
        }
        None => BootLayout::of_firmware(ram, layout::FIRMWARE.start)?,
    };
    let overlays =
        options.dtb_overlays.iter().map(|path| overlay(path)).collect::<Result<_, _>>()?;
    let mut allocator = Allocator::new(ram, options.console.is_on());
    if flash.is_some() {
        allocator.reserve_flash();
    }
    if options.grace.is_some() {
        allocator.reserve_power_button();
    }
    if options.vfio_platform.iter().any(|device| device.scmi != ScmiMode::Off) {
        allocator.reserve_scmi();
    }
    let virtio = VirtioDevices::are_wanted(options);
    let pci = virtio || !options.vfio_pci.is_empty() || !options.vfio_user.is_empty();
    if pci {
        allocator.reserve_pci();
    }
    if ram.base != layout::RAM_START {
        ram::check_place(options.memory, &allocator)?;
    }
    // Before anything is opened, then with all that is known.
    let devices = options.vfio_platform.len() + options.vfio_pci.len() + options.vfio_user.len();
    let run = descriptors_of_run(options);
    fd_limit::reserve(run.saturating_add(DESCRIPTORS_OF_DEVICE.saturating_mul(devices as u64)))?;
    let mut slots = SlotAllocator::default();
    let mut assigned = AssignedDevices::plan(options, ram, &mut slots, &mut allocator)?;
    let traces = trace::plan(options, &mut assigned)?;
    let virtio = if pci {
        VirtioDevices::plan(options, backends, &mut slots, &mut allocator)?
    } else {
        VirtioDevices::default()
    };
    let of_devices = assigned.functions.max_descriptors().saturating_add(virtio.max_descriptors());
    let lines = assigned.platform.iter().map(|device| device.irqs().count()).sum();
    let of_statistics = if options.stats.is_some() { LineMonitor::max_files(lines) } else { 1 };
    let of_devices = of_devices.saturating_add(of_statistics as u64);
    let of_traces = traces.iter().map(TracePlan::descriptors).sum::<u64>();
    let of_devices = of_devices.saturating_add(of_traces);
    if pci || !assigned.is_empty() {
        fd_limit::reserve(run.saturating_add(of_devices))?;
    }
    if !assigned.is_empty() {
        check_vcpus(options.cpus)?;
    }
    let plan = MachinePlan {
        cpus: options.cpus,
        ram,
        pages: options.memory.pages,
        boot,
        cmdline,
        features: options.cpu_features,
        gic: options.gic,
        serial: options.serial,
        console: options.console.clone(),
        virtio_console: options.virtio_console.clone(),
        shared_ram: options.shares_ram(),
        pci,
        root_ports: assigned.functions.ports(),
        end: allocator.end(),
        spis: allocator.spi_count(),
        message_spis: allocator.message_spis(),
        overlays,
        descriptors: run.saturating_add(of_devices),
        timeout: options.timeout,
        grace: options.grace,
        control: options.control.clone(),
        register: options.register.clone(),
        on_reset: options.on_reset,
    };
    Ok((plan, Opened { kernel, flash, initrd, assigned, virtio, traces }))
}

/// How many descriptors a run takes beside its devices' when all of it is planned: KVM, the VM and its
/// devices, vCPUs with their statistics, the IOMMU, the serial port, the event loop.
fn descriptors_of_run(options: &RunOptions) -> u64 {
    let consoles = [&options.console, &options.virtio_console].into_iter();
    let consoles = consoles.filter(|kind| !matches!(kind, ConsoleKind::Stdio | ConsoleKind::Off));
    let of_consoles = DESCRIPTORS_OF_CONSOLE.saturating_mul(consoles.count() as u64);
    let of_control = if options.control.is_some() { DESCRIPTORS_OF_CONTROL } else { 0 };
    let of_run = options.cpus.saturating_mul(2).saturating_add(20);
    let of_registration = u64::from(options.register.is_some());
    of_run.saturating_add(of_consoles).saturating_add(of_control).saturating_add(of_registration)
}

/// The kernel parameters that come first, for Linux. The last console is /dev/console.
fn default_cmdline(options: &RunOptions, kernel: Option<&Kernel>) -> Vec<&'static str> {
    if !options.default_cmdline || !kernel.is_some_and(Kernel::is_linux) {
        return Vec::new();
    }
    let consoles = [
        (&options.console, options.serial.console_parameter()),
        (&options.virtio_console, "console=hvc0"),
    ];
    let with = consoles.into_iter().filter(|(kind, _)| kind.is_on());
    with.map(|(_, parameter)| parameter).collect()
}

/// Checks that each vCPU can have a thread, before devices are touched, and tells if they share
/// few of the host's CPUs.
#[cold]
fn check_vcpus(wanted: u64) -> Result<(), Error> {
    limits::check_threads(wanted)?;
    match (limits::cpus(), limits::online_cpus()) {
        (Some(cpus), Some(online)) if cpus < online && cpus < wanted => log::warn!(
            "{wanted} vCPUs share {cpus} of the host's {online} CPUs: this process's cpuset or \
             affinity has no more (taskset -p $$, /sys/fs/cgroup/…/cpuset.cpus)"
        ),
        _ => {}
    }
    Ok(())
}

/// Reads an overlay.
fn overlay(path: &Path) -> Result<Overlay, Error> {
    let blob = BootFile::open(Role::DtbOverlay, path)?.read_whole(MAX_DTB_SIZE)?;
    Ok(Overlay::read(path.display().to_string(), &blob)?)
}
