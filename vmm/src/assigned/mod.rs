//! The devices that a guest is given: opened while planning, attached while building, released at
//! the end.

mod device;
mod unbound;

use std::sync::Arc;

use arch::{RamPages, layout, smccc};
use boot::fdt::Node;
use boot::fdt::host::HostTree;
use boot::help::Help;
use boot::layout::Ram;
use devices::irq::InterruptController;
use devices::pci::SlotAllocator;
use devices::scmi::{self, Scmi};
use devices::stop;
use devices::vfio::assign::{self, AssessedDevice, Assignment, DeviceRef};
use devices::vfio::host::{Host, HostDevice};
use devices::vfio::hot_reset;
use devices::vfio::iommu::{
    Backend, DmaConstraintError, DmaConstraints, Iommu, IommuOptions, MapError,
};
use devices::vfio::memlock::Memlock;
use devices::vfio::node::{Alias, alias};
use devices::vfio::pci::PciFunction;
use devices::vfio::platform::{self, PlatformDevice};
use devices::vfio::region::host_page_size;
use devices::vfio::unbound::UnboundDevice;

pub use self::device::AssignedDevice;
pub use self::unbound::{Obstacle, unbound_note};
use crate::allocator::Allocator;
use crate::cli::{MemoryOptions, RunOptions, VfioPciOptions, VfioPlatformOptions};
use crate::error::Error;
use crate::functions::{Functions, OpenFunction};
use crate::interrupts::Line;
use crate::limits;
use crate::tree;
use crate::vfio_user::VfioUserDevices;

/// The devices of a guest.
#[derive(Default)]
pub struct AssignedDevices {
    // Dropped in this order: devices are stopped before the IOMMU's mappings of RAM are removed.
    /// What they have by SCMI, if anything.
    pub scmi: Option<Arc<Scmi>>,
    /// Platform devices, in the order given.
    pub platform: Vec<AssignedDevice>,
    /// PCI functions: the host's in the order given, then those of vfio-user servers.
    pub functions: Functions,
    /// Those of the servers.
    pub vfio_user: VfioUserDevices,
    /// The guest's aliases: the machine's own, and those of the devices.
    pub aliases: Vec<Alias>,
    /// The IOMMU's mappings; `None` without devices of the host.
    pub iommu: Option<Iommu>,
    /// What stands in the way of a run, where devices are planned that aren't bound to VFIO.
    pub obstacles: Vec<Obstacle>,
}

/// Which devices of the host a guest is given.
pub struct Selection<'a> {
    /// Those of the platform and AMBA buses.
    pub platform: &'a [VfioPlatformOptions],
    /// PCI functions.
    pub pci: &'a [VfioPciOptions],
    /// How their DMA is mapped.
    pub iommu: IommuOptions,
    /// The host's pages that RAM is made of.
    pub pages: RamPages,
    /// Plan also those that can't be opened as things are, because they aren't bound to VFIO above
    /// all: from their nodes and sysfs.
    pub unbound: bool,
}

impl AssignedDevices {
    /// Opens the devices and PCI functions, the host's and those of vfio-user servers, checks that
    /// `ram` can be mapped for their DMA, and allocates their addresses and interrupts. For a dry
    /// run, those of the host needn't be bound.
    ///
    /// # Errors
    ///
    /// A device can't be assigned, or it or RAM can't have the address that is asked for.
    pub fn plan(
        options: &RunOptions,
        ram: Ram,
        slots: &mut SlotAllocator,
        allocator: &mut Allocator,
    ) -> Result<Self, Error> {
        let selection = Selection {
            platform: &options.vfio_platform,
            pci: &options.vfio_pci,
            iommu: options.iommu,
            pages: options.memory.pages,
            unbound: options.dry_run,
        };
        let (mut assigned, mut functions) = Self::of_host(&selection, ram, allocator)?;
        assigned.vfio_user = VfioUserDevices::connect(&options.vfio_user, &mut functions)?;
        assigned.functions = Functions::place(functions, slots, allocator)?;
        let aliases = assigned.platform.iter().flat_map(|device| device.nodes.aliases.clone());
        let own = tree::own_aliases(options.console.is_on());
        assigned.aliases = alias::resolve(&own, aliases.collect()).map_err(|error| {
            Error::usage(error.to_string())
                .help("another number: strait run --dry-run shows /aliases")
        })?;
        Ok(assigned)
    }

    /// As [`plan`](Self::plan), for devices of the host only; their PCI functions have no slots yet.
    ///
    /// # Errors
    ///
    /// As for [`plan`](Self::plan).
    pub fn of_host(
        selection: &Selection<'_>,
        ram: Ram,
        allocator: &mut Allocator,
    ) -> Result<(Self, Vec<OpenFunction>), Error> {
        let Selection { platform, pci, iommu, pages, unbound } = *selection;
        if platform.is_empty() && pci.is_empty() {
            return Ok((Self::default(), Vec::new()));
        }
        let host = Host::default();
        let mut obstacles = Vec::new();
        let which = platform.iter().map(|device| &device.which);
        let which = which.chain(pci.iter().map(|function| &function.which));
        let tokens = platform.iter().map(|_| None).chain(pci.iter().map(|one| one.vf_token));
        let mut devices = Vec::new();
        let assessed = assign::assess_all(&host, which)?.into_iter().zip(tokens);
        for (AssessedDevice { device, assessed }, token) in assessed {
            let assessed = assessed.and_then(|one| one.with_vf_token(&host, token));
            devices.push((device, unbound::accept(assessed, unbound, &mut obstacles)?));
        }
        for (index, (device, _)) in devices.iter().enumerate() {
            assign::check_bus(device, index >= platform.len())?;
        }
        let assignments = devices.iter().filter_map(|(_, assignment)| assignment.clone());
        let assignments: Vec<Assignment> = assignments.collect();
        let iommu = if obstacles.is_empty() {
            let opened = Iommu::open(&host, &assignments, iommu);
            unbound::accept(opened, unbound, &mut obstacles)?
        } else {
            None
        };
        match &iommu {
            Some(iommu) => check_memory(iommu, ram, pages)?,
            None => obstacles.extend(unbound::memory(&host, &assignments, ram, pages)),
        }
        let (described, enumerated) = devices.split_at(platform.len().min(devices.len()));
        let mut functions = open_functions(iommu.as_ref(), enumerated, pci)?;
        if let Some(iommu) = &iommu {
            let named = functions.iter_mut().map(|open| (open.name.as_str(), &mut open.function));
            hot_reset::prepare(&host, |group| iommu.group(group), &mut named.collect::<Vec<_>>());
        }
        let opened = open_platform(iommu.as_ref(), described, platform)?;
        if iommu.is_some() {
            // Of others it isn't known whether VFIO has a reset for them.
            check_confinement(&host, &opened, described)?;
        }
        let platform = device::place(opened, platform, allocator)?;
        Ok((Self { platform, iommu, obstacles, ..Self::default() }, functions))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.platform.is_empty() && self.functions.is_empty()
    }

    /// What maps their DMA; `None` without devices of the host.
    pub fn backend(&self) -> Option<Backend> {
        self.iommu.as_ref().map(Iommu::backend)
    }

    /// Their nodes.
    pub fn nodes(&self) -> Vec<Node> {
        self.platform.iter().map(|device| device.nodes.top()).collect()
    }

    /// The nodes of SCMI.
    pub fn firmware_nodes(&self) -> impl Iterator<Item = Node> {
        let (base, function) = (layout::SCMI.start, smccc::SCMI);
        let nodes = self.scmi.iter();
        nodes.flat_map(move |scmi| scmi::nodes(base, function, scmi.resources()))
    }

    /// The clocks to which the nodes refer.
    pub fn clocks(&self) -> Vec<Node> {
        self.platform.iter().flat_map(|device| device.nodes.clocks.iter().cloned()).collect()
    }

    /// Their interrupt lines, for statistics.
    pub fn lines(&self) -> Vec<Line> {
        self.platform.iter().flat_map(AssignedDevice::lines).collect()
    }

    /// Stops what the devices of the host were doing, before RAM is mapped for their DMA.
    ///
    /// # Errors
    ///
    /// One does not stop.
    pub fn quiesce(&self) -> Result<(), Error> {
        for AssignedDevice { device, .. } in &self.platform {
            stop::check()?;
            let quiesced = device.quiesce()?;
            log::info!("{}: {quiesced}", device.name());
        }
        self.functions.quiesce()
    }

    /// Enables the devices' interrupts: the last step before the guest runs.
    ///
    /// # Errors
    ///
    /// VFIO refused.
    pub fn arm(&mut self) -> Result<(), Error> {
        for AssignedDevice { device, .. } in &mut self.platform {
            stop::check()?;
            device.arm()?;
        }
        self.vfio_user.start_guest()?;
        self.functions.arm();
        Ok(())
    }

    /// Makes the devices as they were when the guest got them, for a guest that begins anew and runs not;
    /// they are to be [armed](Self::arm) again.
    ///
    /// # Errors
    ///
    /// One does not stop.
    #[cold]
    pub fn restart(&mut self, gic: &dyn InterruptController) -> Result<(), Error> {
        for AssignedDevice { device, spis, .. } in &mut self.platform {
            device.restart(gic, spis)?;
        }
        self.functions.restart(gic)
    }

    /// Shortens the deadline of servers' answers: the run is ending.
    pub fn shorten_deadline(&self) {
        self.vfio_user.shorten_deadline();
    }

    /// Takes the devices back; no vCPU runs any more.
    pub fn release(mut self) {
        // It holds what resets them.
        self.scmi = None;
        self.functions.release();
        for AssignedDevice { device, .. } in &mut self.platform {
            match device.release() {
                Ok(quiesced) => log::info!("{}: {quiesced}", device.name()),
                // The run's result stands. With --bind, it isn't given back to its driver.
                Err(error) => log::error!("{}", Error::from(error).help(STILL_RUNS).log_text()),
            }
        }
    }
}

/// What to do about a device that doesn't stop.
const STILL_RUNS: &str = "power-cycle the board: what it still does by DMA reaches what the host has mapped for it, or all \
     memory where its IOMMU group's type is identity";

/// Stops what the platform devices were doing for a guest whose process has ended, and left them bound: no
/// memory is mapped for their DMA, but their drivers shall find them quiet. Answers those that may still run.
/// Where the process was `killed`, it has stopped none of them; else it has told which didn't stop. PCI
/// functions are reset by VFIO when nobody has them open any more.
#[cold]
pub fn stop_bound(options: &RunOptions, killed: bool) -> Vec<HostDevice> {
    let host = Host::default();
    // One that was passed is closed in this process, which has bound the devices and may open its own.
    let iommu = IommuOptions { iommufd: None, ..options.iommu };
    let mut running = Vec::new();
    for VfioPlatformOptions { which, device: options_of, .. } in &options.vfio_platform {
        let DeviceRef::Name(name) = which else { continue };
        let Ok(Some(device)) = host.find(name) else { continue };
        match platform::stop(&host, &device, options_of, iommu) {
            Ok(quiesced) if killed => log::info!("{}: {quiesced}", device.name()),
            Ok(_) => {}
            Err(error) if killed => {
                log::error!("{}", Error::from(error).help(STILL_RUNS).log_text());
                running.push(device);
            }
            Err(error) if error.still_runs() => running.push(device),
            // It couldn't be opened, nor could the guest's process.
            Err(_) => {}
        }
    }
    running
}

/// Checks that RAM can be mapped for the DMA of all devices, and pinned.
fn check_memory(iommu: &Iommu, ram: Ram, pages: RamPages) -> Result<(), Error> {
    let constraints = iommu.constraints();
    let reaches = constraints
        .check_ram(ram.base, ram.size)
        .map_err(|error| out_of_reach(error, constraints, ram, pages))?;
    for reach in reaches {
        log::warn!(
            "{reach}: the guest's kernel copies what its driver has elsewhere; less --memory \
             avoids that"
        );
    }
    Memlock::current().check(ram.size).map_err(MapError::Memlock)?;
    check_pinning(ram, pages)
}

/// Checks that the host has the memory. Huge pages that are reserved it has.
fn check_pinning(ram: Ram, pages: RamPages) -> Result<(), Error> {
    if pages.are_reserved() { Ok(()) } else { limits::check_pinning(ram.size) }
}

/// The error of RAM that can't be mapped where it is, with the place where it can be.
#[cold]
fn out_of_reach(
    error: DmaConstraintError,
    constraints: &DmaConstraints,
    ram: Ram,
    pages: RamPages,
) -> Error {
    // Nothing else of a guest is there.
    let base = constraints.place(layout::RAM_START, ram.size, pages.alignment());
    let Some(base) = base.filter(|base| *base != ram.base) else { return error.into() };
    let memory = MemoryOptions { size: ram.size.into(), pages, base };
    let help = format!("--memory {memory}");
    Error::new(error.to_string()).help(match error.help() {
        Some(other) => format!("{help}; or {other}"),
        None => help,
    })
}

/// A device of the host, and its assignment if it can be opened.
type Selected = (HostDevice, Option<Assignment>);

/// Opens platform devices; without an IOMMU, describes them from their nodes.
fn open_platform(
    iommu: Option<&Iommu>,
    devices: &[Selected],
    wanted: &[VfioPlatformOptions],
) -> Result<Vec<PlatformDevice>, Error> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let tree = HostTree::system()?;
    let options = wanted.iter().map(|options| &options.device);
    let nodes = devices.iter().map(|(device, _)| device);
    let nodes: Vec<_> = nodes.zip(options.clone().map(|options| &options.node)).collect();
    let builders = platform::node_builders(&Host::default(), &tree, &nodes)?;
    let opened = devices.iter().zip(options).zip(builders);
    let opened = opened.map(|(((device, assignment), options), builder)| {
        stop::check()?;
        Ok(match (iommu, assignment) {
            (Some(iommu), Some(assignment)) => {
                PlatformDevice::open(iommu, assignment, builder, options.clone())?
            }
            _ => PlatformDevice::open_unbound(&tree, device, builder, options.clone())?,
        })
    });
    opened.collect()
}

/// Checks that DMA which a guest leaves running reaches nothing of the host's.
fn check_confinement(
    host: &Host,
    opened: &[PlatformDevice],
    devices: &[Selected],
) -> Result<(), Error> {
    for (device, (_, assignment)) in opened.iter().zip(devices) {
        let Some(assignment) = assignment else { continue };
        device.check_confinement(&host.group(assignment.group))?;
    }
    Ok(())
}

/// Opens PCI functions; without an IOMMU, describes them from sysfs.
fn open_functions(
    iommu: Option<&Iommu>,
    devices: &[Selected],
    wanted: &[VfioPciOptions],
) -> Result<Vec<OpenFunction>, Error> {
    let opened = devices.iter().zip(wanted).map(|((device, assignment), options)| {
        stop::check()?;
        let (name, options_of, page) = (device.name(), options.function.device, host_page_size());
        let function = match (iommu, assignment) {
            (Some(iommu), Some(assignment)) => {
                PciFunction::open(iommu.open_device(assignment)?, name, options_of, page)?
            }
            _ => PciFunction::open(Arc::new(UnboundDevice::pci(device)?), name, options_of, page)?,
        };
        let (name, address, hotplug) = (name.to_owned(), options.function.address, options.hotplug);
        Ok(OpenFunction { name, function, address, is_of_host: true, hotplug })
    });
    opened.collect()
}
