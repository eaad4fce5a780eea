//! A fake PCI function behind VFIO: a [`FakeDevice`] with VFIO's regions and interrupts of one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vmm_sys_util::tempfile::TempFile;

use super::super::uapi::{AffectedFunction, IrqInfo, RegionInfo};
use super::FakeDevice;

/// Regions lie this far apart in the file.
const APART: u64 = 1 << 24;

/// VFIO's index of the configuration space.
const CONFIG: usize = 7;

/// BARs 0 to 5, the ROM, the configuration space, and VGA's (`VFIO_PCI_NUM_REGIONS`).
const REGIONS: u64 = 9;

/// A function to be, whose registers are a file.
pub(crate) struct FakeFunction {
    file: File,
    pub(crate) regions: Vec<RegionInfo>,
    /// INTx, MSI, MSI-X, error, request (`VFIO_PCI_NUM_IRQS`).
    pub(crate) irqs: Vec<IrqInfo>,
    pub(crate) can_reset: bool,
    /// The functions of its bus; none if that can't be reset.
    pub(crate) bus: Vec<AffectedFunction>,
}

impl FakeFunction {
    /// One with a configuration space of this size, zeroed, and nothing else.
    pub(crate) fn new(config: u64) -> Self {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(REGIONS * APART).unwrap();
        let region = |index: u64| RegionInfo {
            index: u32::try_from(index).unwrap(),
            offset: index * APART,
            readable: true,
            writable: true,
            ..Default::default()
        };
        let mut regions: Vec<_> = (0..REGIONS).map(region).collect();
        regions[CONFIG].size = config;
        let none = IrqInfo { count: 0, eventfd: true, maskable: false, automasked: false };
        Self { file, regions, irqs: vec![none; 5], can_reset: true, bus: Vec::new() }
    }

    /// Puts bytes into its configuration space.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.regions[CONFIG].offset + offset).unwrap();
    }

    /// Gives it a BAR of this size, with these flags in its register.
    pub(crate) fn bar(&mut self, index: usize, size: u64, flags: u8) {
        self.regions[index].size = size;
        self.regions[index].mappable = flags & 1 == 0;
        self.put(0x10 + 4 * u64::try_from(index).unwrap(), &[flags]);
    }

    /// Its configuration space, to be looked at behind the scenes.
    pub(crate) fn config(&self) -> ConfigFile {
        ConfigFile { file: self.file.try_clone().unwrap(), base: self.regions[CONFIG].offset }
    }

    /// The function behind VFIO.
    pub(crate) fn calls(&self) -> Arc<FakeDevice> {
        let file = self.file.try_clone().unwrap();
        let mut device = FakeDevice::over(file, self.regions.clone());
        (device.irqs, device.can_reset, device.pci) = (self.irqs.clone(), self.can_reset, true);
        device.bus = self.bus.clone();
        Arc::new(device)
    }
}

/// A function's configuration space behind the scenes.
pub(crate) struct ConfigFile {
    file: File,
    base: u64,
}

impl ConfigFile {
    pub(crate) fn read_exact_at(&self, data: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(data, self.base + offset)
    }
}
