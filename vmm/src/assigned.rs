//! The devices a guest is given: opened while planning, handed over while building, taken back at
//! the end.

use std::fs;
use std::ops::Range;

use arch::gic::Gic;
use arch::{GuestRam, Vm, layout};
use boot::fdt::Node;
use boot::fdt::host::HostTree;
use boot::layout::Ram;
use devices::bus::Bus;
use devices::irq::{Spi, Trigger};
use devices::vfio::assign::{self, Assignment};
use devices::vfio::host::Host;
use devices::vfio::iommu::{Backend, Iommu, IommuOptions, MapError};
use devices::vfio::memlock::Memlock;
use devices::vfio::node::Account;
use devices::vfio::pci::PciFunction;
use devices::vfio::platform::{self, PlatformDevice};
use devices::vfio::region::host_page_size;

use crate::cli::{PciOptions, PlatformOptions, RegionAddress, RunOptions, Size};
use crate::error::Error;
use crate::functions::Functions;
use crate::lines::Wire;
use crate::places::{PlaceError, Places};
use crate::served::Served;
use crate::wiring::KvmWiring;

/// The devices of a guest, with their places in it.
#[derive(Default)]
pub struct Assigned {
    // Dropped in this order: devices are stopped before the IOMMU lets go of RAM.
    devices: Vec<Placed>,
    functions: Functions,
    served: Served,
    iommu: Option<Iommu>,
}

/// A device with its places in the guest.
pub struct Placed {
    device: PlatformDevice,
    gpas: Vec<u64>,
    spis: Vec<Spi>,
    node: Node,
    clocks: Vec<Node>,
    account: Vec<Account>,
}

impl Assigned {
    /// Opens the devices and PCI functions, the host's and those of other processes, checks that
    /// `ram` can be mapped for them, and gives the devices places.
    ///
    /// # Errors
    ///
    /// A device can't be assigned, it or RAM can't be where it is wanted.
    pub fn plan(options: &RunOptions, ram: Ram, places: &mut Places) -> Result<Self, Error> {
        let (devices, functions) = (&options.vfio_platform, &options.vfio_pci);
        let mut assigned = Self::of_host(devices, functions, options.iommu, ram, places)?;
        assigned.served = Served::connect(&options.vfio_user, &mut assigned.functions)?;
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
        let which = wanted.iter().map(|device| &device.which);
        let which = which.chain(functions.iter().map(|function| &function.which));
        let assignments = assign::preflight(&host, which)?;
        let (described, enumerated) = assignments.split_at(wanted.len().min(assignments.len()));
        described.iter().try_for_each(|assignment| assignment.check_bus(false))?;
        enumerated.iter().try_for_each(|assignment| assignment.check_bus(true))?;
        let iommu = Iommu::open(&host, &assignments, options)?;
        iommu.windows().check(ram.base, ram.size)?;
        Memlock::current().check(ram.size).map_err(MapError::Memlock)?;
        check_available(ram.size, available_memory())?;

        let functions = open_functions(&iommu, enumerated, functions)?;
        let devices = if wanted.is_empty() {
            Vec::new()
        } else {
            place(open_devices(&iommu, described, wanted)?, wanted, places)?
        };
        Ok(Self { devices, functions, iommu: Some(iommu), ..Self::default() })
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
        self.devices.iter().map(|placed| placed.node.clone()).collect()
    }

    /// The clocks to which the nodes refer.
    pub fn clocks(&self) -> Vec<Node> {
        self.devices.iter().flat_map(|placed| placed.clocks.iter().cloned()).collect()
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
            let quiesced = placed.device.quiesce()?;
            log::info!("{}: quiesced: {quiesced:?}", placed.device.name());
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
                Ok(quiesced) => log::info!("{}: quiesced: {quiesced:?}", placed.device.name()),
                // The IOMMU keeps it from all memory from here on, so the run's result stands.
                Err(error) => log::error!("{}", Error::from(error).report().trim_end()),
            }
        }
    }
}

impl Placed {
    /// Its name in sysfs.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Its regions: their addresses in the guest (GPA), and whether they are mapped, rather than
    /// trapped.
    pub fn regions(&self) -> impl Iterator<Item = (Range<u64>, bool)> {
        self.gpas.iter().zip(self.device.regions()).map(|(gpa, region)| {
            (*gpa..gpa.saturating_add(region.size()), region.mapped().is_some())
        })
    }

    /// Its interrupts.
    pub fn irqs(&self) -> impl Iterator<Item = (Spi, Trigger)> {
        self.spis.iter().zip(self.device.irqs()).map(|(spi, irq)| (*spi, irq.trigger()))
    }

    /// What is known of this kind of device.
    pub fn binding(&self) -> Option<&'static str> {
        self.device.binding().map(|binding| binding.name())
    }

    /// Its node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What became of each property of the host's node.
    pub fn account(&self) -> &[Account] {
        &self.account
    }

    fn wires(&self) -> impl Iterator<Item = Wire> {
        self.spis.iter().zip(self.device.irqs()).enumerate().map(|(index, (spi, irq))| {
            let (fired, resample) = irq.eventfds();
            let device = self.name().to_owned();
            Wire { device, index, spi: *spi, trigger: irq.trigger(), fired, resample }
        })
    }

    fn level_spis(&self) -> impl Iterator<Item = u32> {
        self.irqs().filter(|(_, trigger)| *trigger == Trigger::Level).map(|(spi, _)| spi.0)
    }
}

/// Opens platform devices.
fn open_devices(
    iommu: &Iommu,
    assignments: &[Assignment],
    wanted: &[PlatformOptions],
) -> Result<Vec<PlatformDevice>, Error> {
    let tree = HostTree::system()?;
    let nodes = assignments.iter().zip(wanted.iter().map(|options| &options.device.node));
    let drafts = platform::drafts(&tree, &nodes.collect::<Vec<_>>())?;
    let opened = assignments.iter().zip(wanted).zip(drafts);
    let opened = opened.map(|((assignment, options), draft)| {
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
        let (name, calls) = (assignment.name(), iommu.open_device(assignment)?);
        let function = PciFunction::open(calls, name, options.function, host_page_size())?;
        functions.add(name, function, options.address);
    }
    Ok(functions)
}

/// Gives each device its places: first those that are wanted somewhere, then the others, which go
/// where there is room.
fn place(
    devices: Vec<PlatformDevice>,
    wanted: &[PlatformOptions],
    places: &mut Places,
) -> Result<Vec<Placed>, Error> {
    let mut all = Vec::with_capacity(devices.len());
    for (device, options) in devices.iter().zip(wanted) {
        all.push(fixed_addresses(device, options, places)?);
    }
    let mut placed = Vec::with_capacity(devices.len());
    for (device, fixed) in devices.into_iter().zip(all) {
        let gpas = free_addresses(&device, &fixed, places)?;
        let spis = device.irqs().iter().map(|_| places.spi()).collect::<Option<Vec<_>>>();
        let spis = spis.ok_or_else(|| {
            Error::new(format!(
                "{} can't be assigned: the guest's interrupt controller has no more interrupts",
                device.name()
            ))
        })?;
        let made = device.node(&gpas, &spis)?;
        let (node, clocks, account) = (made.device, made.clocks, made.account);
        placed.push(Placed { device, gpas, spis, node, clocks, account });
    }
    Ok(placed)
}

/// Takes the places that a person wants for regions.
fn fixed_addresses(
    device: &PlatformDevice,
    options: &PlatformOptions,
    places: &mut Places,
) -> Result<Vec<Option<u64>>, Error> {
    let name = device.name();
    let regions = device.regions();
    let wanted = options.addresses_of(regions.len()).map_err(|given| {
        let count = regions.len();
        Error::new(format!("{name} has {count} regions, and addr= has addresses for {given}"))
            .help("addr=auto, addr=host, or an address for each: addr=host:auto:0x10000000")
    })?;
    let mut gpas = Vec::with_capacity(regions.len());
    for (index, (region, wanted)) in regions.iter().zip(wanted).enumerate() {
        let gpa = match wanted {
            RegionAddress::Auto => None,
            RegionAddress::At(gpa) => Some(gpa),
            RegionAddress::Host => Some(host_address(device, index)?),
        };
        if let Some(gpa) = gpa {
            let page = region.areas().first().map(|_| device.page_size());
            places
                .take(gpa, region.size(), page, format!("region {index} of {name}"))
                .map_err(|error| misplaced(name, index, &error))?;
        }
        gpas.push(gpa);
    }
    Ok(gpas)
}

/// Finds places for the other regions.
fn free_addresses(
    device: &PlatformDevice,
    fixed: &[Option<u64>],
    places: &mut Places,
) -> Result<Vec<u64>, Error> {
    let name = device.name();
    let regions = device.regions().iter().zip(fixed).enumerate();
    let places = regions.map(|(index, (region, fixed))| match fixed {
        Some(gpa) => Ok(*gpa),
        None => places
            .take_any(region.size(), format!("region {index} of {name}"))
            .map_err(|error| misplaced(name, index, &error)),
    });
    places.collect()
}

/// Where a region is on the host, by physical address.
fn host_address(device: &PlatformDevice, index: usize) -> Result<u64, Error> {
    let unknown = |why: &str| {
        Error::new(format!(
            "region {index} of {} can't be at the host's address, which isn't known: {why}",
            device.name()
        ))
        .help("addr=auto, or an address: addr=0x10000000")
    };
    match device.draft().addresses.get(index) {
        Some(Ok(range)) => Ok(range.start),
        Some(Err(why)) => Err(unknown(why)),
        None => Err(unknown("the device tree has no entry for it in `reg`")),
    }
}

fn misplaced(name: &str, index: usize, error: &PlaceError) -> Error {
    let help = match error {
        PlaceError::Misaligned { .. } => "addr=auto, or mmap=off: then accesses to it trap",
        PlaceError::Full => "addr=host where its address on the host is free in the guest",
        PlaceError::Taken { .. } | PlaceError::Beyond { .. } => {
            "addr=auto; strait run --dry-run shows what is where"
        }
    };
    Error::new(format!("region {index} of {name} can't be placed: {error}")).help(help)
}

/// Checks that RAM, which is pinned for DMA as a whole, fits what the host has left: else the
/// host would kill processes to find it.
fn check_available(ram: u64, available: Option<u64>) -> Result<(), Error> {
    let Some(available) = available.filter(|available| *available < ram) else { return Ok(()) };
    let (ram, available) = (Size::from(ram), Size::from(available & !((1 << 20) - 1)));
    Err(Error::new(format!(
        "{ram} of guest RAM can't be pinned for DMA: this host has {available} available"
    ))
    .help("a smaller --memory, or free some: `free -m`"))
}

/// `MemAvailable` of /proc/meminfo in bytes (Documentation/filesystems/proc.rst).
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_must_fit_what_the_host_has_left() {
        check_available(1 << 30, Some(1 << 30)).unwrap();
        check_available(1 << 30, None).unwrap();
        let error = check_available(5 << 30, Some((3 << 30) + 4096)).unwrap_err();
        assert!(error.report().contains("5G") && error.report().contains("3G"), "{error:?}");
    }
}
