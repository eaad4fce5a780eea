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
use devices::vfio::assign;
use devices::vfio::host::Host;
use devices::vfio::iommu::{Iommu, MapError};
use devices::vfio::memlock::Memlock;
use devices::vfio::node::Dropped;
use devices::vfio::platform::{DeviceOptions, PlatformDevice};
use vm_allocator::{AddressAllocator, AllocPolicy};

use crate::cli::{PlatformOptions, Size};
use crate::error::Error;
use crate::lines::Wire;
use crate::wiring::KvmWiring;

/// Regions are at least this far apart: the largest page of any host, since a page of the guest's
/// address space belongs to one region only.
const REGION_ALIGNMENT: u64 = 64 << 10;

/// Larger regions are aligned so that KVM can map them in blocks of this size.
const BLOCK: u64 = 2 << 20;

/// The devices of a guest, with their places in it.
#[derive(Default)]
pub struct Assigned {
    // Dropped in this order: devices are stopped before the IOMMU lets go of RAM.
    devices: Vec<Placed>,
    iommu: Option<Iommu>,
}

/// A device with its places in the guest.
pub struct Placed {
    device: PlatformDevice,
    gpas: Vec<u64>,
    spis: Vec<Spi>,
    nodes: Vec<Node>,
    dropped: Vec<Dropped>,
}

impl Assigned {
    /// Opens the devices, checks that `ram` can be mapped for them, and gives them places.
    ///
    /// # Errors
    ///
    /// A device can't be assigned, or RAM can't be where it is for it.
    pub fn plan(wanted: &[PlatformOptions], ram: Ram) -> Result<Self, Error> {
        if wanted.is_empty() {
            return Ok(Self::default());
        }
        let host = Host::default();
        let names: Vec<&str> = wanted.iter().map(|options| options.name.as_str()).collect();
        let assignments = assign::preflight(&host, &names)?;
        let iommu = Iommu::open(&host, &assignments)?;
        iommu.windows().check(ram.base, ram.size)?;
        Memlock::current().check(ram.size).map_err(MapError::Memlock)?;
        check_available(ram.size, available_memory())?;

        let tree = HostTree::system()?;
        let mut places = Places::new()?;
        let mut devices = Vec::with_capacity(wanted.len());
        for (assignment, options) in assignments.iter().zip(wanted) {
            let options = DeviceOptions { quiesce: options.quiesce };
            let device = PlatformDevice::open(&iommu, &tree, assignment, options)?;
            devices.push(places.place(device)?);
        }
        Ok(Self { devices, iommu: Some(iommu) })
    }

    /// The SPIs up to the last one in use.
    pub fn spi_count(&self) -> u32 {
        let spis = self.devices.iter().flat_map(|placed| &placed.spis);
        spis.map(|spi| spi.0 + 1).max().unwrap_or(layout::spi::PLATFORM)
    }

    /// The devices in the order given.
    pub fn devices(&self) -> &[Placed] {
        &self.devices
    }

    /// Their nodes.
    pub fn nodes(&self) -> Vec<Node> {
        self.devices.iter().flat_map(|placed| placed.nodes.iter().cloned()).collect()
    }

    /// Their interrupt lines, to be watched.
    pub fn wires(&self) -> Vec<Wire> {
        self.devices.iter().flat_map(Placed::wires).collect()
    }

    /// Hands the devices over: stops what they were doing, lets them reach `ram`, shows their
    /// registers to the guest and connects their interrupts. The GIC must be complete.
    ///
    /// # Errors
    ///
    /// A device does not stop, or the host refused a step.
    pub fn attach(
        &mut self,
        vm: &mut Vm,
        gic: &Gic,
        ram: &GuestRam,
        bus: &mut Bus,
    ) -> Result<(), Error> {
        let Some(iommu) = &mut self.iommu else { return Ok(()) };
        for placed in &self.devices {
            let quiesced = placed.device.quiesce()?;
            log::info!("{}: quiesced: {quiesced:?}", placed.device.name());
        }
        // SAFETY: guest RAM is never unmapped, and nothing but the guest and its devices is
        // affected by what is written into it.
        unsafe { iommu.map(layout::RAM_START, ram.host_address(), ram.size() as u64)? };
        for (_, group) in iommu.groups() {
            vm.add_vfio_file(group)?;
        }
        let wiring = KvmWiring(vm);
        for placed in &mut self.devices {
            // SAFETY: the run drops `self` only after all vCPU threads are gone.
            let traps = unsafe { placed.device.map_regions(&wiring, &placed.gpas)? };
            for trap in traps {
                bus.add(placed.device.name(), trap.gpa..trap.gpa + trap.size, trap.device)?;
            }
            gic.set_level_sensitive(placed.level_spis())?;
            placed.device.connect_irqs(&wiring, &placed.spis)?;
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
        Ok(())
    }

    /// Takes the devices back; no vCPU runs any more.
    pub fn release(mut self) {
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

    /// What the host's node has and the guest's has not, and why.
    pub fn dropped(&self) -> &[Dropped] {
        &self.dropped
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

/// Free places in the guest.
struct Places {
    addresses: AddressAllocator,
    next_spi: u32,
}

impl Places {
    fn new() -> Result<Self, Error> {
        let Range { start, end } = layout::PLATFORM;
        let addresses = AddressAllocator::new(start, end - start).map_err(no_room)?;
        Ok(Self { addresses, next_spi: layout::spi::PLATFORM })
    }

    fn place(&mut self, device: PlatformDevice) -> Result<Placed, Error> {
        let gpas = device
            .regions()
            .iter()
            .map(|region| self.address(region.size()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| {
                let Range { start, end } = layout::PLATFORM;
                Error::new(format!(
                    "{} can't be assigned: its regions don't fit between {start:#x} and {end:#x} \
                     of the guest's address space ({e})",
                    device.name()
                ))
            })?;
        let spis = device
            .irqs()
            .iter()
            .map(|_| self.spi())
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                Error::new(format!(
                    "{} can't be assigned: the guest's interrupt controller has no more interrupts",
                    device.name()
                ))
            })?;
        let made = device.node(&gpas, &spis)?;
        let mut nodes = made.clocks;
        nodes.push(made.device);
        Ok(Placed { device, gpas, spis, nodes, dropped: made.dropped })
    }

    fn address(&mut self, size: u64) -> Result<u64, vm_allocator::Error> {
        let alignment =
            size.checked_next_power_of_two().unwrap_or(BLOCK).clamp(REGION_ALIGNMENT, BLOCK);
        let size = size.max(1).next_multiple_of(REGION_ALIGNMENT);
        self.addresses.allocate(size, alignment, AllocPolicy::FirstMatch).map(|r| r.start())
    }

    fn spi(&mut self) -> Option<Spi> {
        let spi = Some(Spi(self.next_spi)).filter(|spi| spi.0 < layout::spi::END);
        self.next_spi += 1;
        spi
    }
}

fn no_room(e: vm_allocator::Error) -> Error {
    Error::new(format!("the guest's address space can't be divided: {e}"))
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

    #[test]
    fn regions_are_placed_apart_and_aligned() {
        let mut places = Places::new().unwrap();
        let sizes = [0x1000, 0x1000, 0x2_0000, 0x50_0000, 0, 1];
        let mut taken: Vec<Range<u64>> = Vec::new();
        for size in sizes {
            let gpa = places.address(size).unwrap();
            assert!(gpa.is_multiple_of(REGION_ALIGNMENT), "{gpa:#x}");
            let range = gpa..gpa + size.max(1).next_multiple_of(REGION_ALIGNMENT);
            assert!(taken.iter().all(|r| r.end <= range.start || range.end <= r.start));
            assert!(layout::PLATFORM.start <= range.start && range.end <= layout::PLATFORM.end);
            taken.push(range);
        }
        assert!(places.address(1 << 29).is_err());
    }

    #[test]
    fn interrupts_run_out_at_the_last_spi() {
        let mut places = Places::new().unwrap();
        let count = std::iter::from_fn(|| places.spi()).count();
        assert_eq!(count, (layout::spi::END - layout::spi::PLATFORM) as usize);
    }
}
