//! The devices a guest is given: opened while planning, handed over while building, taken back at
//! the end.

mod placed;
mod unbound;

use arch::gic::Gic;
use arch::{GuestRam, Vm, layout};
use boot::fdt::Node;
use boot::fdt::host::HostTree;
use boot::layout::Ram;
use devices::bus::Bus;
use devices::stop;
use devices::vfio::assign::{self, AssignError, Assignment, DeviceRef};
use devices::vfio::host::{Host, HostDevice};
use devices::vfio::iommu::{Backend, Iommu, IommuOptions, MapError};
use devices::vfio::memlock::Memlock;
use devices::vfio::node::{Alias, alias};
use devices::vfio::pci::PciFunction;
use devices::vfio::platform::{self, PlatformDevice};
use devices::vfio::region::host_page_size;

pub use self::placed::Placed;
use self::placed::place;
pub use self::unbound::{Obstacle, caveat};
use crate::allocator::Places;
use crate::cli::{ConsoleKind, PciOptions, PlatformOptions, RunOptions};
use crate::error::Error;
use crate::functions::Functions;
use crate::irqfds::KvmWiring;
use crate::limits;
use crate::lines::Wire;
use crate::served::Served;
use crate::tree;

/// The devices of a guest, with their places in it.
#[derive(Default)]
pub struct Assigned {
    // Dropped in this order: devices are stopped before the IOMMU lets go of RAM.
    devices: Vec<Placed>,
    functions: Functions,
    served: Served,
    /// The guest's aliases, the machine's own among them.
    aliases: Vec<Alias>,
    iommu: Option<Iommu>,
    /// What stands in the way of a run, where the devices weren't opened but foreseen.
    obstacles: Vec<Obstacle>,
}

impl Assigned {
    /// Opens the devices and PCI functions, the host's and those of other processes, checks that
    /// `ram` can be mapped for them, and gives the devices places. For a dry run, those of the host
    /// that can't be had as things are, are [foreseen](Self::foresee).
    ///
    /// # Errors
    ///
    /// A device can't be assigned, it or RAM can't be where it is wanted.
    pub fn plan(options: &RunOptions, ram: Ram, places: &mut Places) -> Result<Self, Error> {
        let (devices, functions) = (&options.vfio_platform, &options.vfio_pci);
        let of_host = if options.dry_run { Self::foresee } else { Self::of_host };
        let mut assigned = of_host(devices, functions, options.iommu, ram, places)?;
        assigned.served = Served::connect(&options.vfio_user, &mut assigned.functions)?;
        let aliases = assigned.devices.iter().flat_map(|placed| placed.aliases.iter().cloned());
        let own = tree::own_aliases(options.console == ConsoleKind::Stdio);
        assigned.aliases = alias::all(&own, aliases.collect()).map_err(|error| {
            Error::usage(error.to_string())
                .help("another number: strait run --dry-run shows /aliases")
        })?;
        Ok(assigned)
    }

    /// As [`plan`](Self::plan), for the host's own only, by this way to the IOMMU.
    ///
    /// # Errors
    ///
    /// As for [`plan`](Self::plan).
    pub fn of_host(
        wanted: &[PlatformOptions],
        functions: &[PciOptions],
        options: IommuOptions,
        ram: Ram,
        places: &mut Places,
    ) -> Result<Self, Error> {
        if wanted.is_empty() && functions.is_empty() {
            return Ok(Self::default());
        }
        let host = Host::default();
        let assignments = assign::preflight(&host, which(wanted, functions))?;
        check_buses(assignments.iter().map(|assignment| &assignment.device), wanted.len())?;
        let iommu = Iommu::open(&host, &assignments, options)?;
        Self::opened(iommu, &assignments, wanted, functions, ram, places)
    }

    /// The devices of these assignments, whose groups are attached: first those that the device tree
    /// describes, then PCI functions.
    fn opened(
        iommu: Iommu,
        assignments: &[Assignment],
        wanted: &[PlatformOptions],
        functions: &[PciOptions],
        ram: Ram,
        places: &mut Places,
    ) -> Result<Self, Error> {
        let (described, enumerated) = assignments.split_at(wanted.len().min(assignments.len()));
        for reach in iommu.constraints().check_ram(ram.base, ram.size)? {
            log::warn!(
                "{reach}: the guest's kernel copies what its driver has elsewhere; less --memory \
                 avoids that"
            );
        }
        Memlock::current().check(ram.size).map_err(MapError::Memlock)?;
        limits::check_pinning(ram.size)?;

        let functions = open_functions(&iommu, enumerated, functions)?;
        let devices = if wanted.is_empty() {
            Vec::new()
        } else {
            place(open_devices(&iommu, described, wanted)?, wanted, places)?
        };
        Ok(Self { devices, functions, iommu: Some(iommu), ..Self::default() })
    }

    /// What stands in the way of a run; only a dry run goes on then.
    pub fn obstacles(&self) -> &[Obstacle] {
        &self.obstacles
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.functions.is_empty()
    }

    /// The PCI functions in the order given.
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// The servers of those functions that other processes have, which are the last.
    pub fn served(&self) -> &Served {
        &self.served
    }

    /// The devices in the order given.
    pub fn devices(&self) -> &[Placed] {
        &self.devices
    }

    /// The way to the IOMMU; `None` without devices.
    pub fn backend(&self) -> Option<Backend> {
        self.iommu.as_ref().map(Iommu::backend)
    }

    /// Their nodes.
    pub fn nodes(&self) -> Vec<Node> {
        self.devices.iter().map(|placed| placed.top.clone()).collect()
    }

    /// The clocks to which the nodes refer.
    pub fn clocks(&self) -> Vec<Node> {
        self.devices.iter().flat_map(|placed| placed.clocks.iter().cloned()).collect()
    }

    /// The guest's aliases: the machine's own, and those of the devices.
    pub fn aliases(&self) -> &[Alias] {
        &self.aliases
    }

    /// Their interrupt lines, to be watched.
    pub fn wires(&self) -> Vec<Wire> {
        self.devices.iter().flat_map(Placed::wires).collect()
    }

    /// Hands the devices over: stops what they were doing, lets them reach `ram`, shows their
    /// registers to the guest and connects their interrupts. The GIC must be complete. PCI functions
    /// are [attached](Functions::attach) by themselves afterwards.
    ///
    /// # Errors
    ///
    /// A device does not stop, or the host refused a step.
    pub fn attach(
        &mut self,
        vm: &Vm,
        gic: &Gic,
        wiring: &KvmWiring,
        ram: &GuestRam,
        bus: &mut Bus,
    ) -> Result<(), Error> {
        for placed in &self.devices {
            stop::check()?;
            let quiesced = placed.device.quiesce()?;
            log::info!("{}: {quiesced}", placed.device.name());
        }
        self.functions.quiesce()?;
        self.served.lend(ram)?;
        if let Some(iommu) = &mut self.iommu {
            // SAFETY: guest RAM is never unmapped, and nothing but the guest and its devices is
            // affected by what is written into it.
            unsafe { iommu.map(layout::RAM_START, ram.host_address(), ram.size() as u64)? };
            for file in iommu.files() {
                vm.add_vfio_file(file)?;
            }
        }
        for placed in &mut self.devices {
            // SAFETY: the run drops `self` only after all vCPU threads are gone.
            let traps = unsafe { placed.device.map_regions(wiring, &placed.gpas)? };
            for trap in traps {
                bus.add(placed.device.name(), trap.gpa..trap.gpa + trap.size, trap.device)?;
            }
            gic.set_level_sensitive(placed.level_spis())?;
            placed.device.connect_irqs(wiring, &placed.spis)?;
        }
        Ok(())
    }

    /// Lets the devices' interrupts through: the last step before the guest runs.
    ///
    /// # Errors
    ///
    /// VFIO refused.
    pub fn arm(&mut self) -> Result<(), Error> {
        for placed in &mut self.devices {
            stop::check()?;
            placed.device.arm()?;
        }
        self.served.begin()?;
        self.functions.arm();
        Ok(())
    }

    /// The run is ending: nothing waits long for a device any more.
    pub fn hurry(&self) {
        self.served.hurry();
    }

    /// Takes the devices back; no vCPU runs any more.
    pub fn release(mut self) {
        self.functions.release();
        for placed in &mut self.devices {
            match placed.device.release() {
                Ok(quiesced) => log::info!("{}: {quiesced}", placed.device.name()),
                // The IOMMU keeps it from all memory from here on, so the run's result stands.
                Err(error) => log::error!("{}", Error::from(error).told()),
            }
        }
    }
}

/// The devices that are meant, PCI functions last.
fn which<'a>(
    wanted: &'a [PlatformOptions],
    functions: &'a [PciOptions],
) -> impl Iterator<Item = &'a DeviceRef> {
    let described = wanted.iter().map(|device| &device.which);
    described.chain(functions.iter().map(|function| &function.which))
}

/// Checks that the devices are on the buses that their options are for: PCI, but for the first
/// `described`.
fn check_buses<'a>(
    devices: impl Iterator<Item = &'a HostDevice>,
    described: usize,
) -> Result<(), AssignError> {
    devices
        .enumerate()
        .try_for_each(|(index, device)| assign::check_bus(device, index >= described))
}

/// Opens platform devices.
fn open_devices(
    iommu: &Iommu,
    assignments: &[Assignment],
    wanted: &[PlatformOptions],
) -> Result<Vec<PlatformDevice>, Error> {
    let tree = HostTree::system()?;
    let devices = assignments.iter().map(|assignment| &assignment.device);
    let nodes = devices.zip(wanted.iter().map(|options| &options.device.node));
    let nodes = nodes.collect::<Vec<_>>();
    let drafts = platform::drafts(&Host::default(), &tree, &nodes)?;
    let opened = assignments.iter().zip(wanted).zip(drafts);
    let opened = opened.map(|((assignment, options), draft)| {
        stop::check()?;
        Ok(PlatformDevice::open(iommu, assignment, draft, options.device.clone())?)
    });
    opened.collect()
}

/// Opens PCI functions.
fn open_functions(
    iommu: &Iommu,
    assignments: &[Assignment],
    wanted: &[PciOptions],
) -> Result<Functions, Error> {
    let mut functions = Functions::default();
    for (assignment, options) in assignments.iter().zip(wanted) {
        stop::check()?;
        let (name, calls) = (assignment.name(), iommu.open_device(assignment)?);
        let function = PciFunction::open(calls, name, options.function, host_page_size())?;
        functions.add(name, function, options.address);
    }
    Ok(functions)
}
