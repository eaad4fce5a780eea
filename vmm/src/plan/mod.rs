//! Options + what the host has → what the machine will be. Nothing on the host changes, but for the
//! devices themselves: opening one makes VFIO reset it where it can.

pub mod describe;

use boot::help::Help;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use arch::CpuFeatures;
use arch::layout::{MAX_GICV3_CPUS, RAM_START};
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
use crate::cli::{ConsoleKind, GicChoice, RunOptions, Size};
use crate::error::Error;
use crate::limits;
use crate::virtio::VirtioDevices;

/// RAM comes in multiples of this: the largest page of any host, so that every page of it can be
/// mapped for DMA.
const RAM_GRANULE: u64 = 64 << 10;

/// The descriptors that a device takes before it is known what it has: its file and its group's, or
/// its server's socket and the memory that it lends.
const DESCRIPTORS_OF_DEVICE: u64 = 2;

/// The descriptors of a console that isn't standard input and output: what is listened on, the client
/// and the next one, and eventfds.
const DESCRIPTORS_OF_CONSOLE: u64 = 6;

/// What a machine will be.
pub struct MachinePlan {
    /// vCPUs.
    pub cpus: u64,
    /// RAM, in guest physical addresses.
    pub ram: Ram,
    /// Where kernel, initrd and device tree go.
    pub boot: BootLayout,
    /// The kernel command line.
    pub cmdline: Cmdline,
    /// What of the host's CPUs its vCPUs may have.
    pub features: CpuFeatures,
    /// Which interrupt controller.
    pub gic: GicChoice,
    /// Where the console is.
    pub console: ConsoleKind,
    /// Whether RAM is a file, which other processes map.
    pub shared_ram: bool,
    /// Whether it has a PCI host, for the functions it is given.
    pub pci: bool,
    /// Above everything in its address space but a PCI host's window for 64-bit BARs (GPA).
    pub end: u64,
    /// How many SPIs its devices need.
    pub spis: u32,
    /// SPIs behind those for messages of PCI functions, which a GICv2 needs.
    pub message_spis: Range<u32>,
    /// The overlays for the device tree.
    pub overlays: Vec<Overlay>,
    /// How long the guest may run.
    pub timeout: Option<Duration>,
}

/// What was opened while planning.
pub struct Opened {
    /// The kernel.
    pub kernel: Kernel,
    /// The initial RAM disk.
    pub initrd: Option<Initrd>,
    /// The devices that the guest is given.
    pub assigned: AssignedDevices,
    /// Its virtio devices.
    pub virtio: VirtioDevices,
}

/// Resolves options against the host.
///
/// # Errors
///
/// Whatever can't work, as far as it can be known without changing anything.
pub fn resolve(options: &RunOptions) -> Result<(MachinePlan, Opened), Error> {
    if options.cpus > MAX_GICV3_CPUS {
        return Err(Error::usage(format!(
            "--cpus {}: a guest has at most {MAX_GICV3_CPUS}",
            options.cpus
        ))
        .help(format!("--cpus {MAX_GICV3_CPUS}")));
    }
    let ram = ram(options.memory)?;
    limits::check_reservation(ram.size, options.shares_ram())?;
    let kernel = Kernel::open(&options.kernel)?;
    let with_console = options.console.is_on() && options.default_cmdline;
    let defaults: &[&str] = if with_console { &["console=ttyS0"] } else { &[] };
    let cmdline = Cmdline::compose(defaults, options.cmdline.as_deref())
        .map_err(|e| Error::usage(e.to_string()).maybe_help(e.help()))?;
    let is_root = cmdline.has_ram_disk_root();
    let initrd = options.initrd.as_deref().map(|path| Initrd::open(path, is_root)).transpose()?;
    let placement = kernel.placement(ram.base, ram.size)?;
    let initrd_size = initrd.as_ref().map(Initrd::size);
    let boot = boot::layout::layout(ram, placement, MAX_DTB_SIZE, initrd_size)?;
    let overlays =
        options.dtb_overlays.iter().map(|path| overlay(path)).collect::<Result<_, _>>()?;
    let mut allocator = Allocator::new(ram, options.console.is_on());
    let virtio = VirtioDevices::are_wanted(options);
    let pci = virtio || !options.vfio_pci.is_empty() || !options.vfio_user.is_empty();
    if pci {
        allocator.reserve_pci();
    }
    // Before anything is opened, then with all that is known.
    let devices = options.vfio_platform.len() + options.vfio_pci.len() + options.vfio_user.len();
    let run = descriptors_of_run(options.cpus, &options.console);
    fd_limit::reserve(run.saturating_add(DESCRIPTORS_OF_DEVICE.saturating_mul(devices as u64)))?;
    let mut slots = SlotAllocator::default();
    let assigned = AssignedDevices::plan(options, ram, &mut slots, &mut allocator)?;
    let virtio = if pci {
        VirtioDevices::plan(options, &mut slots, &mut allocator)?
    } else {
        VirtioDevices::default()
    };
    let of_devices = assigned.functions.max_descriptors().saturating_add(virtio.max_descriptors());
    if pci || !assigned.is_empty() {
        fd_limit::reserve(run.saturating_add(of_devices))?;
    }
    if !assigned.is_empty() {
        check_vcpus(options.cpus)?;
    }
    let plan = MachinePlan {
        cpus: options.cpus,
        ram,
        boot,
        cmdline,
        features: options.cpu_features,
        gic: options.gic,
        console: options.console.clone(),
        shared_ram: options.shares_ram(),
        pci,
        end: allocator.end(),
        spis: allocator.spi_count(),
        message_spis: allocator.message_spis(),
        overlays,
        timeout: options.timeout,
    };
    Ok((plan, Opened { kernel, initrd, assigned, virtio }))
}

/// How many descriptors a run takes beside its devices' when all of it is planned: KVM, the VM and its
/// devices, vCPUs with their statistics, the IOMMU, the serial port, the event loop.
fn descriptors_of_run(cpus: u64, console: &ConsoleKind) -> u64 {
    let console = if *console == ConsoleKind::Stdio { 0 } else { DESCRIPTORS_OF_CONSOLE };
    cpus.saturating_mul(2).saturating_add(20 + console)
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

/// Checks the size of RAM against what makes sense and what the host has.
fn ram(size: Size) -> Result<Ram, Error> {
    let bytes = size.bytes();
    if bytes == 0 {
        return Err(Error::usage("--memory 0: a guest needs RAM").help("--memory 256M"));
    }
    if let Some(host) = host_memory().filter(|host| bytes > *host) {
        let host = Size::from(host & !((1 << 20) - 1));
        return Err(Error::new(format!(
            "{size} of guest RAM can't be mapped: this host has {host} of memory and swap"
        ))
        .help("a smaller --memory; `free -m` shows what is left"));
    }
    if !bytes.is_multiple_of(RAM_GRANULE) {
        let rounded = Size::from(bytes - bytes % RAM_GRANULE + RAM_GRANULE);
        return Err(Error::usage(format!("--memory {size} is no multiple of 64K"))
            .help(format!("--memory {rounded}")));
    }
    Ok(Ram { base: RAM_START, size: bytes })
}

/// The host's memory and swap in bytes.
fn host_memory() -> Option<u64> {
    let mut info = std::mem::MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: sysinfo fills the structure it is given, or fails.
    if unsafe { libc::sysinfo(info.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: sysinfo succeeded, so the structure is filled.
    let info = unsafe { info.assume_init() };
    // Far below u64::MAX, so that sizes at most as large can be rounded up.
    info.totalram.checked_add(info.totalswap)?.checked_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_that_makes_no_sense_is_refused() {
        for bytes in [0, 1 << 10, (64 << 20) + 4096, u64::MAX, 1 << 60] {
            assert!(ram(Size::from(bytes)).is_err(), "{bytes:#x}");
        }
        assert_eq!(ram(Size::from(64 << 20)).unwrap(), Ram { base: RAM_START, size: 64 << 20 });
    }
}
