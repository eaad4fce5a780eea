//! What VFIO reports of a device and of the IOMMU in front of it.

use std::fmt::{self, Display, Formatter};

use devices::extent::Extent;
use devices::vfio::iommu::{Backend, Iommu};
use devices::vfio::uapi::{
    AffectedFunction, DeviceCalls, IoctlError, IommuInfo, IrqInfo, RegionInfo, page_sizes,
};
use serde::Serialize;

use crate::assigned::unbound_note;
use crate::cli::Size;
use crate::error::Error;

/// The regions of a PCI device by index (`VFIO_PCI_BAR0_REGION_INDEX` and the following in
/// `linux/vfio.h`).
const PCI_REGIONS: [&str; 9] =
    ["BAR 0", "BAR 1", "BAR 2", "BAR 3", "BAR 4", "BAR 5", "ROM", "configuration", "VGA"];

/// The interrupts of a PCI device by index (`VFIO_PCI_INTX_IRQ_INDEX` and the following).
const PCI_INTERRUPTS: [&str; 5] = ["INTx", "MSI", "MSI-X", "errors", "requests to release it"];

/// The most indices that are queried: more than any device has.
const MAX_INDICES: u32 = 1024;

/// What VFIO reports of a device, without regions of no bytes and indices without interrupts.
#[derive(Debug, Serialize)]
pub struct VfioInfo {
    /// VFIO can reset it; unknown while it isn't bound.
    reset: Option<bool>,
    /// The functions that are reset with its bus, if VFIO can reset it only so.
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_of_bus: Option<Vec<String>>,
    regions: Vec<Region>,
    interrupts: Vec<Interrupt>,
}

#[derive(Debug, Serialize)]
struct Region {
    name: String,
    #[serde(flatten)]
    info: RegionInfo,
}

#[derive(Debug, Serialize)]
struct Interrupt {
    name: String,
    index: u32,
    #[serde(flatten)]
    info: IrqInfo,
}

impl VfioInfo {
    /// Queries all of it.
    ///
    /// # Errors
    ///
    /// The kernel or the server refused.
    pub fn of(calls: &dyn DeviceCalls) -> Result<Self, IoctlError> {
        let device = calls.info()?;
        // A PCI function has an index for each kind of region, also for those it lacks.
        let is_absent = |error: &IoctlError| device.pci && error.is(libc::EINVAL);
        let name = |names: &[&str], kind: &str, index: u32| {
            let names = if device.pci { names } else { &[] };
            let name = usize::try_from(index).ok().and_then(|index| names.get(index));
            name.map_or_else(|| format!("{kind} {index}"), |name| (*name).to_owned())
        };
        let (mut regions, mut interrupts) = (Vec::new(), Vec::new());
        for index in 0..device.regions.min(MAX_INDICES) {
            match calls.region_info(index) {
                Ok(info) if info.size == 0 => (),
                Ok(info) => {
                    regions.push(Region { name: name(&PCI_REGIONS, "region", index), info });
                }
                Err(error) if is_absent(&error) => (),
                Err(error) => return Err(error),
            }
        }
        for index in 0..device.irqs.min(MAX_INDICES) {
            match calls.irq_info(index) {
                Ok(info) if info.count == 0 => (),
                Ok(info) => {
                    let name = name(&PCI_INTERRUPTS, "interrupt", index);
                    interrupts.push(Interrupt { name, index, info });
                }
                Err(error) if is_absent(&error) => (),
                Err(error) => return Err(error),
            }
        }
        let of_bus = if device.pci && !device.reset { calls.hot_reset_info().ok() } else { None };
        let names = |functions: Vec<AffectedFunction>| functions.into_iter().map(|one| one.name);
        let reset_of_bus = of_bus.map(|functions| names(functions).collect());
        Ok(Self { reset: Some(device.reset), reset_of_bus, regions, interrupts })
    }

    /// Queries what is known before the device is bound.
    ///
    /// # Errors
    ///
    /// As for [`of`](Self::of).
    pub fn of_unbound(calls: &dyn DeviceCalls) -> Result<Self, IoctlError> {
        Ok(Self { reset: None, ..Self::of(calls)? })
    }
}

impl Display for VfioInfo {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.reset {
            Some(true) => writeln!(f, "VFIO: can be reset")?,
            Some(false) => match &self.reset_of_bus {
                None => writeln!(f, "VFIO: can't be reset")?,
                Some(all) => writeln!(f, "VFIO: can be reset with its bus: {}", all.join(", "))?,
            },
            None => writeln!(f, "{}", unbound_note())?,
        }
        for Region { name, info } in &self.regions {
            write!(f, "  {name}: {:#x} bytes", info.size)?;
            let flags = [
                (info.readable, "readable"),
                (info.writable, "writable"),
                (info.mappable, "mappable"),
            ];
            write_flags(f, &flags)?;
            for (index, area) in info.areas.iter().flatten().filter(|_| info.mappable).enumerate() {
                let word = if index == 0 { "at" } else { "and" };
                write!(f, " {word} {}", Extent::from(area))?;
            }
            writeln!(f)?;
        }
        for Interrupt { name, info, .. } in &self.interrupts {
            write!(f, "  {name}: count {}", info.count)?;
            let flags = [
                (info.eventfd, "eventfd"),
                (info.maskable, "maskable"),
                (info.automasked, "level (automasked)"),
                (!info.automasked, "edge"),
            ];
            write_flags(f, &flags)?;
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Writes the names of the flags that are set, each after a comma.
fn write_flags(f: &mut Formatter<'_>, flags: &[(bool, &str)]) -> fmt::Result {
    flags.iter().filter(|(is_set, _)| *is_set).try_for_each(|(_, name)| write!(f, ", {name}"))
}

/// What an IOMMU can map.
#[derive(Debug, Serialize)]
pub struct IommuDetails {
    /// The interface that reports it.
    backend: Backend,
    #[serde(flatten)]
    info: IommuInfo,
    /// It makes accesses coherent with the caches that the device doesn't (`VFIO_DMA_CC_IOMMU`);
    /// iommufd doesn't say.
    enforces_coherency: Option<bool>,
}

impl IommuDetails {
    /// Those of the IOMMU in front of a device.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn of(iommu: &Iommu) -> Result<Self, Error> {
        Ok(Self {
            backend: iommu.backend(),
            info: iommu.info().clone(),
            enforces_coherency: iommu.enforces_coherency()?,
        })
    }
}

impl Display for IommuDetails {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "IOMMU ({}):", self.backend.name())?;
        let sizes: Vec<_> =
            page_sizes(self.info.page_sizes).map(|size| Size::from(size).to_string()).collect();
        if sizes.is_empty() {
            writeln!(f, "  pages of {} and larger", Size::from(self.info.alignment))?;
        } else {
            writeln!(f, "  pages of {}", sizes.join(", "))?;
        }
        if let Some(enforces) = self.enforces_coherency {
            let enforces = if enforces { "made" } else { "not made" };
            writeln!(f, "  accesses of the device are {enforces} coherent by it")?;
        }
        for range in self.info.iova_ranges.iter().flatten() {
            writeln!(f, "  IOVA: {:#x}-{:#x}", range.start(), range.end())?;
        }
        match self.info.mappings_left {
            Some(left) => writeln!(f, "  mappings left: {left}"),
            None => Ok(()),
        }
    }
}
