//! A device's places in the guest: where its registers are, and which interrupts are its.

use std::ops::Range;

use boot::fdt::Node;
use devices::irq::{Spi, Trigger};
use devices::vfio::node::{Account, Alias, GuestNodes};
use devices::vfio::platform::PlatformDevice;

use crate::allocator::{PlaceError, Places};
use crate::cli::{PlatformOptions, RegionAddress};
use crate::error::Error;
use crate::lines::Wire;

/// A device with its places in the guest.
pub struct Placed {
    pub(super) device: PlatformDevice,
    pub(super) gpas: Vec<u64>,
    pub(super) spis: Vec<Spi>,
    node: Node,
    pub(super) top: Node,
    pub(super) clocks: Vec<Node>,
    pub(super) aliases: Vec<Alias>,
    account: Vec<Account>,
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

    /// What the guest's driver knows it by.
    pub fn compatible(&self) -> String {
        self.device.draft().compatible.join(" ")
    }

    /// The option of Linux' configuration that builds a driver for it, where that is known.
    pub fn kernel_option(&self) -> Option<&'static str> {
        self.device.binding().and_then(|binding| binding.kernel_option())
    }

    /// Its node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What became of each property of the host's node.
    pub fn account(&self) -> &[Account] {
        &self.account
    }

    pub(super) fn wires(&self) -> impl Iterator<Item = Wire> {
        self.spis.iter().zip(self.device.irqs()).enumerate().map(|(index, (spi, irq))| {
            let (fired, resample) = irq.eventfds();
            let device = self.name().to_owned();
            Wire { device, index, spi: *spi, trigger: irq.trigger(), fired, resample }
        })
    }

    pub(super) fn level_spis(&self) -> impl Iterator<Item = u32> {
        self.irqs().filter(|(_, trigger)| *trigger == Trigger::Level).map(|(spi, _)| spi.0)
    }
}

/// Gives each device its places: first those that are wanted somewhere, then the others, which go
/// where there is room.
pub(super) fn place(
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
        let top = made.top();
        let GuestNodes { device: node, clocks, aliases, account, .. } = made;
        placed.push(Placed { device, gpas, spis, node, top, clocks, aliases, account });
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
