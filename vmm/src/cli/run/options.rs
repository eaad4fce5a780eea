//! What `strait run` is told.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use arch::CpuFeatures;
use devices::vfio::assign::DeviceRef;
use devices::vfio::driver_binding::Owner;
use devices::vfio::iommu::IommuOptions;
use devices::virtio::block::BlockOptions;
use devices::virtio::net::TapRef;
use log::LevelFilter;

use super::super::console::{ConsoleKind, SerialKind};
use super::super::cpu::GicChoice;
use super::super::gdb::GdbOptions;
use super::super::pattern::Pattern;
use super::super::reset::OnReset;
use super::super::sandbox::SandboxMode;
use super::super::{
    FirmwareOptions, KernelOptions, MemoryOptions, NetOptions, PasstOptions, ShareOptions,
    TraceOptions, VfioPciOptions, VfioPlatformOptions, VfioUserOptions, VhostUserOptions,
};

/// What a guest is made of.
#[derive(Debug)]
pub struct RunOptions {
    /// The kernel; its path is empty for none.
    pub kernel: KernelOptions,
    /// What the guest begins with instead.
    pub firmware: Option<FirmwareOptions>,
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
    /// Whether drivers of virtio devices are to map for DMA what they hand over.
    pub virtio_access_platform: bool,
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
    /// Which serial port there is.
    pub serial: SerialKind,
    /// Where the serial console is.
    pub console: ConsoleKind,
    /// Where the virtio console is.
    pub virtio_console: ConsoleKind,
    /// When the run ends by itself.
    pub timeout: Option<Duration>,
    /// How long the guest has after SIGTERM, which presses its power button then.
    pub grace: Option<Duration>,
    /// The socket where it is controlled from outside.
    pub control: Option<PathBuf>,
    /// The name by which the host's manager of machines lists it.
    pub register: Option<String>,
    /// What becomes of a guest that asks for a reset.
    pub on_reset: OnReset,
    /// What ends the run well where a console prints it.
    pub until: Vec<Pattern>,
    /// What ends the run as a failure where a console prints it.
    pub fail_on: Vec<Pattern>,
    /// Where what the consoles print is kept with times.
    pub log: Option<PathBuf>,
    /// The file with more options.
    pub config: Option<PathBuf>,
    /// Only print the options, as such a file.
    pub print_config: bool,
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
    /// Where a report of how it ended is written.
    pub junit: Option<PathBuf>,
    /// What is recorded of which devices.
    pub trace: Vec<TraceOptions>,
    /// Where a debugger connects.
    pub gdb: Option<GdbOptions>,
    /// What is done with what a guest could use against the host.
    pub sandbox: SandboxMode,
    /// Who strait becomes if it is root.
    pub user: Option<Owner>,
    /// What is logged.
    pub log_level: LevelFilter,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            kernel: KernelOptions::default(),
            firmware: None,
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
            virtio_access_platform: false,
            balloon: false,
            bind: false,
            force: false,
            cpu_features: CpuFeatures::ALL,
            gic: GicChoice::default(),
            serial: SerialKind::default(),
            console: ConsoleKind::Stdio,
            virtio_console: ConsoleKind::Off,
            timeout: None,
            grace: None,
            control: None,
            register: None,
            on_reset: OnReset::default(),
            until: Vec::new(),
            fail_on: Vec::new(),
            log: None,
            config: None,
            print_config: false,
            dry_run: false,
            json: false,
            dtb_overlays: Vec::new(),
            dump_dtb: None,
            stats: None,
            junit: None,
            trace: Vec::new(),
            gdb: None,
            sandbox: SandboxMode::default(),
            user: None,
            log_level: LevelFilter::Warn,
        }
    }
}

impl RunOptions {
    /// The devices to assign.
    pub(super) fn devices(&self) -> impl Iterator<Item = &DeviceRef> {
        let described = self.vfio_platform.iter().map(|device| &device.which);
        described.chain(self.vfio_pci.iter().map(|function| &function.which))
    }

    /// The devices to assign that are given by name.
    pub fn device_names(&self) -> Vec<&str> {
        self.devices().filter_map(DeviceRef::name).collect()
    }

    /// The descriptors to use that were open when strait was started.
    pub fn inherited(&self) -> impl Iterator<Item = RawFd> {
        let devices = self.devices().filter_map(|device| match device {
            DeviceRef::Descriptor(fd) => Some(*fd),
            DeviceRef::Name(_) => None,
        });
        let taps = self.net.iter().filter_map(|net| match net.tap {
            TapRef::Descriptor(fd) => Some(fd),
            TapRef::Name(_) => None,
        });
        devices.chain(taps).chain(self.iommu.iommufd)
    }

    /// Other processes map the guest's RAM.
    pub fn shares_ram(&self) -> bool {
        self.has_processes() || !self.vfio_user.is_empty()
    }

    /// Other processes work on virtio devices.
    pub fn has_processes(&self) -> bool {
        !(self.vhost_user.is_empty() && self.share.is_empty() && self.passt.is_empty())
    }
}
