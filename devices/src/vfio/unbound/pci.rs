//! A PCI function, from its `resource` and `config` files (Documentation/PCI/sysfs-pci.rst).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_NUM_REGIONS, VFIO_PCI_ROM_REGION_INDEX,
};

use super::super::host::{HostDevice, ReadError};
use super::super::pci::capability::{self, Capability, CapabilityId};
use super::super::uapi::{DeviceInfo, IrqInfo, RegionInfo};
use super::{UnboundDevice, UnboundError, at};
use crate::pci::config::{INTERRUPT_PIN, STATUS, STATUS_CAP_LIST, STD_HEADER_SIZEOF};
use crate::pci::{ConfigSnapshot, Msi, Msix};

/// Of a resource's flags (`include/linux/ioport.h`): it is memory.
const IORESOURCE_MEM: u64 = 0x200;

impl UnboundDevice {
    /// A PCI function of this host.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read, or the memory for its registers can't be allocated.
    pub fn pci(device: &HostDevice) -> Result<Self, UnboundError> {
        let config = readable(device.pci_config()?);
        let resources = resources(&read(&device.path().join("resource"))?);
        let image = ConfigSnapshot::new(config.clone());
        let (regions, irqs) = (regions(&resources, config_size(device, &config)), irqs(&image));
        let info = DeviceInfo { pci: true, ..DeviceInfo::default() };
        let unbound = Self::new(device.name(), info, regions, irqs)?;
        let region = at(&unbound.regions, VFIO_PCI_CONFIG_REGION_INDEX);
        let offset = region.map_or(0, |region| region.offset);
        unbound
            .file
            .write_all_at(&config, offset)
            .map_err(|source| UnboundError::Memory { name: device.name().to_owned(), source })?;
        Ok(unbound)
    }
}

fn read(path: &Path) -> Result<String, ReadError> {
    fs::read_to_string(path).map_err(|source| ReadError { path: path.to_owned(), source })
}

/// Clears the flag that there are capabilities, if this user may not read them.
fn readable(mut config: Vec<u8>) -> Vec<u8> {
    let [has_list, _] = STATUS_CAP_LIST.to_le_bytes();
    if config.len() <= usize::from(STD_HEADER_SIZEOF)
        && let Some(status) = config.get_mut(usize::from(STATUS))
    {
        *status &= !has_list;
    }
    config
}

/// The size of the whole configuration space, in bytes.
fn config_size(device: &HostDevice, config: &[u8]) -> u64 {
    let shown = u64::try_from(config.len()).unwrap_or_default();
    fs::metadata(device.path().join("config")).map_or(shown, |metadata| metadata.len().max(shown))
}

/// The size and the flags of each resource; a line is its start, end and flags.
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
            VFIO_PCI_CONFIG_REGION_INDEX => (config, 0),
            ..VFIO_PCI_CONFIG_REGION_INDEX => of_resource.copied().unwrap_or_default(),
            _ => (0, 0),
        };
        let is_rom = index == VFIO_PCI_ROM_REGION_INDEX;
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
    (0..VFIO_PCI_NUM_REGIONS).map(region).collect()
}

/// INTx, MSI, MSI-X, error, request (`vfio_pci_get_irq_count`).
fn irqs(config: &ConfigSnapshot) -> Vec<IrqInfo> {
    let capabilities: Vec<Capability> = capability::all(config);
    let dwords = |id: CapabilityId| {
        let found = capabilities.iter().find(|capability| capability.id == id)?;
        Some([0, 4, 8].map(|at| config.u32(found.offset.saturating_add(at))))
    };
    let line = u32::from(config.u8(INTERRUPT_PIN) != 0);
    let msi = dwords(capability::MSI).map_or(0, |[first, ..]| Msi::new(first, 0).capacity());
    let msix = dwords(capability::MSIX).map_or(0, |dwords| Msix::new(dwords, 0).capacity());
    let message = |count| IrqInfo { count, eventfd: true, maskable: false, automasked: false };
    let intx = IrqInfo { count: line, eventfd: true, maskable: true, automasked: true };
    let error = u32::from(dwords(capability::EXPRESS).is_some());
    vec![intx, message(msi.into()), message(msix.into()), message(error), message(1)]
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
    fn vectors_are_counted_by_their_capabilities() {
        let mut config = vec![0; 256];
        (config[6], config[0x34], config[0x3d]) = (0x10, 0x40, 1);
        // MSI for 8, then MSI-X for 65.
        config[0x40..0x44].copy_from_slice(&[0x05, 0x50, 3 << 1, 0]);
        config[0x50..0x54].copy_from_slice(&[0x11, 0, 64, 0]);
        let counts = |config: &[u8]| -> Vec<u32> {
            irqs(&ConfigSnapshot::new(config.to_vec())).into_iter().map(|irq| irq.count).collect()
        };
        assert_eq!(counts(&config), [1, 8, 65, 0, 1]);
        config.truncate(0x40);
        assert_eq!(counts(&readable(config)), [1, 0, 0, 0, 1]);
    }
}
