//! A PCI function, from its `resource` and `config` files (Documentation/PCI/sysfs-pci.rst).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::host::{HostDevice, ReadError};
use super::super::pci::Image;
use super::super::pci::capability::{self, Capability, CapabilityId};
use super::super::uapi::{DeviceInfo, IrqInfo, RegionInfo};
use super::{UnboundDevice, UnboundError};

/// VFIO's regions of a function: BARs 0 to 5, the ROM, the configuration space, and VGA's
/// (`VFIO_PCI_NUM_REGIONS`).
const REGIONS: u32 = 9;
const CONFIG: u32 = 7;

/// Bits of a resource's flags (`include/linux/ioport.h`).
const IORESOURCE_MEM: u64 = 0x200;

/// `PCI_INTERRUPT_PIN`.
const INTERRUPT_PIN: u16 = 0x3d;

/// `PCI_STATUS` and its bit that says that there are capabilities.
const STATUS: usize = 0x06;
const STATUS_CAP_LIST: u8 = 1 << 4;

/// How much of its configuration space anybody may read, in bytes.
const HEADER: usize = 64;

impl UnboundDevice {
    /// A PCI function of this host.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read, or there is no memory to stand for its registers.
    pub fn pci(device: &HostDevice) -> Result<Self, UnboundError> {
        let config = readable(device.pci_config()?);
        let resources = resources(&read(&device.path().join("resource"))?);
        let image = Image::new(config.clone());
        let (regions, irqs) = (regions(&resources, config_size(device, &config)), irqs(&image));
        let info = DeviceInfo { pci: true, ..DeviceInfo::default() };
        let foreseen = Self::new(device.name(), info, regions, irqs)?;
        let place = foreseen.regions.iter().find(|region| region.index == CONFIG);
        let place = place.map_or(0, |region| region.offset);
        foreseen
            .file
            .write_all_at(&config, place)
            .map_err(|source| UnboundError::Memory { name: device.name().to_owned(), source })?;
        Ok(foreseen)
    }
}

fn read(path: &Path) -> Result<String, ReadError> {
    fs::read_to_string(path).map_err(|source| ReadError { path: path.to_owned(), source })
}

/// A configuration space without a chain of capabilities that this user isn't shown.
fn readable(mut config: Vec<u8>) -> Vec<u8> {
    if config.len() <= HEADER
        && let Some(status) = config.get_mut(STATUS)
    {
        *status &= !STATUS_CAP_LIST;
    }
    config
}

/// The size of the whole configuration space, in bytes.
fn config_size(device: &HostDevice, config: &[u8]) -> u64 {
    let shown = u64::try_from(config.len()).unwrap_or_default();
    fs::metadata(device.path().join("config")).map_or(shown, |metadata| metadata.len().max(shown))
}

/// The size and the flags of each resource: a line each of start, end and flags.
fn resources(text: &str) -> Vec<(u64, u64)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().map(|word| {
            u64::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).unwrap_or_default()
        });
        let (start, end, flags) = (words.next()?, words.next()?, words.next()?);
        let size = if end == 0 { 0 } else { end.saturating_sub(start).saturating_add(1) };
        Some((size, flags))
    };
    text.lines().filter_map(line).collect()
}

fn regions(resources: &[(u64, u64)], config: u64) -> Vec<RegionInfo> {
    let region = |index| {
        let of_resource = usize::try_from(index).ok().and_then(|index| resources.get(index));
        let (size, flags) = match index {
            CONFIG => (config, 0),
            ..CONFIG => of_resource.copied().unwrap_or_default(),
            _ => (0, 0),
        };
        let is_rom = index == CONFIG - 1;
        RegionInfo {
            index,
            size,
            readable: size != 0,
            writable: size != 0 && !is_rom,
            mappable: flags & IORESOURCE_MEM != 0 && !is_rom,
            msix_mappable: true,
            ..RegionInfo::default()
        }
    };
    (0..REGIONS).map(region).collect()
}

/// INTx, MSI, MSI-X, error, request (`vfio_pci_get_irq_count`).
fn irqs(config: &Image) -> Vec<IrqInfo> {
    let capabilities: Vec<Capability> = capability::all(config);
    // The register of a capability that tells how many messages there are.
    let control = |id: CapabilityId| {
        let found = capabilities.iter().find(|capability| capability.id == id)?;
        Some(config.u16(found.offset.saturating_add(2)))
    };
    let line = u32::from(config.u8(INTERRUPT_PIN) != 0);
    let msi = control(capability::MSI).map_or(0, |control| 1 << (control >> 1 & 0b111));
    let msix = control(capability::MSIX).map_or(0, |control| u32::from(control & 0x7ff) + 1);
    let message = |count| IrqInfo { count, eventfd: true, maskable: false, automasked: false };
    let intx = IrqInfo { count: line, eventfd: true, maskable: true, automasked: true };
    let error = u32::from(control(capability::EXPRESS).is_some());
    vec![intx, message(msi), message(msix), message(error), message(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_a_line_each() {
        let text = "0x0000008000000000 0x0000008000003fff 0x0000000000140204\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x0000000000001000 0x000000000000101f 0x0000000000040101\nnonsense\n";
        assert_eq!(resources(text), [(0x4000, 0x14_0204), (0, 0), (0x20, 0x4_0101)]);
        let regions = regions(&resources(text), 4096);
        let shown: Vec<_> = regions.iter().map(|r| (r.size, r.mappable)).collect();
        let none = (0, false);
        let expected =
            [(0x4000, true), none, (0x20, false), none, none, none, none, (4096, false), none];
        assert_eq!(shown, expected);
    }

    #[test]
    fn messages_are_counted_by_their_capabilities() {
        let mut config = vec![0; 256];
        (config[6], config[0x34], config[0x3d]) = (STATUS_CAP_LIST, 0x40, 1);
        // MSI for 8, then MSI-X for 65.
        config[0x40..0x44].copy_from_slice(&[0x05, 0x50, 3 << 1, 0]);
        config[0x50..0x54].copy_from_slice(&[0x11, 0, 64, 0]);
        let counts = |config: &[u8]| -> Vec<u32> {
            irqs(&Image::new(config.to_vec())).into_iter().map(|irq| irq.count).collect()
        };
        assert_eq!(counts(&config), [1, 8, 65, 0, 1]);
        config.truncate(HEADER);
        assert_eq!(counts(&readable(config)), [1, 0, 0, 0, 1]);
    }
}
