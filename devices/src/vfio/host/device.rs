//! A device on the host's platform, AMBA or PCI bus.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ReadError, canonical, file_name, found, link_name, read_line};

/// The base class of bridges in a PCI device's `class` (PCI Code and ID Assignment Specification,
/// 1.7).
const PCI_BRIDGE: &str = "0x06";

/// A bus for whose devices VFIO has a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostBus {
    /// The platform bus.
    Platform,
    /// The AMBA bus: devices with `arm,primecell` among their `compatible`.
    Amba,
    /// The PCI bus.
    Pci,
}

impl HostBus {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Platform, Self::Amba, Self::Pci];

    /// The buses whose devices the device tree describes.
    pub const DESCRIBED: [Self; 2] = [Self::Platform, Self::Amba];

    /// Its name below `/sys/bus`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Amba => "amba",
            Self::Pci => "pci",
        }
    }

    /// The VFIO driver for its devices.
    pub fn vfio_driver(self) -> &'static str {
        match self {
            Self::Platform => "vfio-platform",
            Self::Amba => "vfio-amba",
            Self::Pci => "vfio-pci",
        }
    }

    /// The kernel's option for that driver.
    pub fn vfio_option(self) -> &'static str {
        match self {
            Self::Platform => "CONFIG_VFIO_PLATFORM",
            Self::Amba => "CONFIG_VFIO_AMBA",
            Self::Pci => "CONFIG_VFIO_PCI",
        }
    }
}

impl fmt::Display for HostBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The identity of a PCI function (`Documentation/ABI/testing/sysfs-bus-pci`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciIdentity {
    /// Base class, subclass and programming interface.
    pub class: u32,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
}

/// A device. Its methods read sysfs at the time of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    name: String,
    bus: HostBus,
    path: PathBuf,
}

impl HostDevice {
    pub(super) fn new(name: &str, bus: HostBus, path: PathBuf) -> Self {
        Self { name: name.to_owned(), bus, path }
    }

    /// Its name, such as `2c0a0000.dma`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bus it is on.
    pub fn bus(&self) -> HostBus {
        self.bus
    }

    /// Its directory in sysfs, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The driver it is bound to.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn driver(&self) -> Result<Option<String>, ReadError> {
        link_name(&self.path.join("driver"))
    }

    /// The only driver that may bind to it (`driver_override`), if set.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn driver_override(&self) -> Result<Option<String>, ReadError> {
        let name = read_line(&self.path.join("driver_override"))?;
        // "(null)" is what the kernel prints for none.
        Ok(name.filter(|name| !name.is_empty() && name != "(null)"))
    }

    /// The number of its IOMMU group.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn group(&self) -> Result<Option<u32>, ReadError> {
        Ok(link_name(&self.path.join("iommu_group"))?.and_then(|number| number.parse().ok()))
    }

    /// Whether it is behind an IOMMU: it has a group, or will have one once a driver is bound to it, which
    /// is when Linux creates the group: by its node's `iommus`, or for a PCI device, by its host bridge's
    /// `iommu-map` (dt-schema, pci-iommu.yaml).
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn behind_iommu(&self) -> Result<bool, ReadError> {
        if self.group()?.is_some() || canonical(&self.path.join("of_node/iommus"))?.is_some() {
            return Ok(true);
        }
        if self.bus != HostBus::Pci {
            return Ok(false);
        }
        for above in self.path.ancestors().skip(1) {
            if canonical(&above.join("of_node/iommu-map"))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether it is a PCI bridge: VFIO's drivers refuse bridges, and a group is viable without them.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn is_bridge(&self) -> Result<bool, ReadError> {
        if self.bus != HostBus::Pci {
            return Ok(false);
        }
        Ok(read_line(&self.path.join("class"))?.is_some_and(|class| class.starts_with(PCI_BRIDGE)))
    }

    /// Its PCI identity; `None` if it isn't on the PCI bus.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn pci_identity(&self) -> Result<Option<PciIdentity>, ReadError> {
        if self.bus != HostBus::Pci {
            return Ok(None);
        }
        let number = |attribute: &str| {
            let text = read_line(&self.path.join(attribute))?.unwrap_or_default();
            let digits = text.strip_prefix("0x").unwrap_or_default();
            Ok(u32::from_str_radix(digits, 16).unwrap_or_default())
        };
        let id = |number: u32| u16::try_from(number).unwrap_or_default();
        Ok(Some(PciIdentity {
            class: number("class")?,
            vendor: id(number("vendor")?),
            device: id(number("device")?),
        }))
    }

    /// The name of its physical function, if it is a virtual function of SR-IOV.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn physical_function(&self) -> Result<Option<String>, ReadError> {
        link_name(&self.path.join("physfn"))
    }

    /// Whether it is a function that can have virtual ones (SR-IOV).
    pub fn has_virtual_functions(&self) -> bool {
        self.path.join("sriov_totalvfs").exists()
    }

    /// Its configuration space: 64 bytes for an unprivileged user, else all of it. Empty if it isn't on
    /// the PCI bus.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub fn pci_config(&self) -> Result<Vec<u8>, ReadError> {
        let path = self.path.join("config");
        Ok(found(&path, fs::read(&path))?.unwrap_or_default())
    }

    /// Whether it is bound to VFIO's driver for its bus.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn is_with_vfio(&self) -> Result<bool, ReadError> {
        Ok(self.driver()?.as_deref() == Some(self.bus.vfio_driver()))
    }

    /// The directory of its node in the live device tree.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn of_node(&self) -> Result<Option<PathBuf>, ReadError> {
        canonical(&self.path.join("of_node"))
    }

    /// The directory of the device tree node of a PCI function's host bridge: the parent of its root bus,
    /// such as `pci0000:00`, in sysfs.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn host_bridge_node(&self) -> Result<Option<PathBuf>, ReadError> {
        let is_root = |path: &&Path| {
            file_name(path).strip_prefix("pci").is_some_and(|number| number.contains(':'))
        };
        let root = self.path.ancestors().find(is_root).and_then(Path::parent);
        root.map_or(Ok(None), |host| canonical(&host.join("of_node")))
    }

    /// Its node's `compatible`, the most specific first (devicetree specification, 2.3.1); empty without a
    /// node.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn compatible(&self) -> Result<Vec<String>, ReadError> {
        let path = self.path.join("of_node/compatible");
        let bytes = found(&path, fs::read(&path))?.unwrap_or_default();
        let names = bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }
}
