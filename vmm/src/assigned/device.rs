//! A device's addresses and interrupts in the guest.

use std::ops::Range;

use devices::irq::{Spi, Trigger};
use devices::vfio::node::{GuestNodes, ScmiIds};
use devices::vfio::platform::PlatformDevice;

use crate::allocator::{AllocError, Allocator, RAM};
use crate::cli::{RegionAddress, VfioPlatformOptions};
use crate::error::Error;
use crate::interrupts::Line;

/// A platform device with its addresses and interrupts in the guest.
pub struct AssignedDevice {
    /// The device.
    pub device: PlatformDevice,
    /// Where each of its regions is (GPA).
    pub gpas: Vec<u64>,
    /// The SPI of each of its interrupts.
    pub spis: Vec<Spi>,
    /// What the guest's device tree has of it.
    pub nodes: GuestNodes,
}

impl AssignedDevice {
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

    /// The name of its binding.
    pub fn binding(&self) -> Option<&'static str> {
        self.device.binding().map(|binding| binding.name)
    }

    /// What the guest's driver knows it by.
    pub fn compatible(&self) -> String {
        self.device.node_builder().compatible.join(" ")
    }

    /// The option of Linux' configuration that builds a driver for it, where that is known.
    pub fn kernel_option(&self) -> Option<&'static str> {
        self.device.binding().and_then(|binding| binding.kernel_option)
    }

    /// Makes its nodes anew, with what the guest has by SCMI numbered from `ids` on.
    ///
    /// # Errors
    ///
    /// None: there are as many addresses and interrupts as before.
    #[cold]
    pub fn renumber(&mut self, ids: ScmiIds) -> Result<(), Error> {
        self.nodes = self.device.node(&self.gpas, &self.spis, ids)?;
        Ok(())
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = Line> {
        self.spis.iter().zip(self.device.irqs()).enumerate().map(|(index, (spi, irq))| {
            let (fired, resample) = irq.eventfds();
            let device = self.name().to_owned();
            Line { device, index, spi: *spi, trigger: irq.trigger(), fired, resample }
        })
    }

    /// The SPIs of its level-triggered interrupts.
    pub fn level_spis(&self) -> impl Iterator<Item = u32> {
        self.irqs().filter(|(_, trigger)| *trigger == Trigger::Level).map(|(spi, _)| spi.0)
    }
}

/// Allocates each device's addresses and interrupts: first the addresses that a person chose, then
/// the others, wherever they fit.
pub(super) fn place(
    devices: Vec<PlatformDevice>,
    wanted: &[VfioPlatformOptions],
    allocator: &mut Allocator,
) -> Result<Vec<AssignedDevice>, Error> {
    let mut all = Vec::with_capacity(devices.len());
    for (device, options) in devices.iter().zip(wanted) {
        all.push(fixed_addresses(device, options, allocator)?);
    }
    let mut placed = Vec::with_capacity(devices.len());
    for (device, fixed) in devices.into_iter().zip(all) {
        let gpas = free_addresses(&device, &fixed, allocator)?;
        let spis =
            device.irqs().iter().map(|_| allocator.allocate_spi()).collect::<Option<Vec<_>>>();
        let spis = spis.ok_or_else(|| {
            Error::new(format!(
                "{} can't be assigned: the guest's interrupt controller has no more interrupts",
                device.name()
            ))
        })?;
        let nodes = device.node(&gpas, &spis, ScmiIds::default())?;
        placed.push(AssignedDevice { device, gpas, spis, nodes });
    }
    Ok(placed)
}

/// Reserves the addresses that a person chose for regions.
fn fixed_addresses(
    device: &PlatformDevice,
    options: &VfioPlatformOptions,
    allocator: &mut Allocator,
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
            allocator
                .reserve(gpa, region.size(), page, format!("region {index} of {name}"))
                .map_err(|error| misplaced(name, index, &error))?;
        }
        gpas.push(gpa);
    }
    Ok(gpas)
}

/// Allocates addresses for the other regions.
fn free_addresses(
    device: &PlatformDevice,
    fixed: &[Option<u64>],
    allocator: &mut Allocator,
) -> Result<Vec<u64>, Error> {
    let name = device.name();
    let regions = device.regions().iter().zip(fixed).enumerate();
    let gpas = regions.map(|(index, (region, fixed))| match fixed {
        Some(gpa) => Ok(*gpa),
        None => allocator
            .allocate(region.size(), format!("region {index} of {name}"))
            .map_err(|error| misplaced(name, index, &error)),
    });
    gpas.collect()
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
    match device.node_builder().addresses.get(index) {
        Some(Ok(range)) => Ok(range.start),
        Some(Err(why)) => Err(unknown(why)),
        None => Err(unknown("the device tree has no entry for it in `reg`")),
    }
}

fn misplaced(name: &str, index: usize, error: &AllocError) -> Error {
    let help = match error {
        AllocError::Misaligned { .. } => "addr=auto, or mmap=off: then accesses to it trap".into(),
        AllocError::Full => "addr=host where its address on the host is free in the guest".into(),
        AllocError::Taken { range, other, .. } if other == RAM => {
            let base = range.end.checked_next_multiple_of(1 << 30).unwrap_or_default();
            format!("RAM behind it, by --memory SIZE,base={base:#x}; or addr=auto")
        }
        AllocError::Taken { .. } | AllocError::Beyond { .. } => {
            "addr=auto; strait run --dry-run shows what is where".to_owned()
        }
    };
    Error::new(format!("region {index} of {name} can't be placed: {error}")).help(help)
}
