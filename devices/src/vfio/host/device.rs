//! A device on the host's platform or AMBA bus.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{ReadError, canonical, link_name, read_line};

/// A bus whose devices are described by the device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// The platform bus.
    Platform,
    /// The AMBA bus: devices with `arm,primecell` among their `compatible`.
    Amba,
}

impl Bus {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Platform, Self::Amba];

    /// Its name below `/sys/bus`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Amba => "amba",
        }
    }

    /// The VFIO driver for its devices.
    pub fn vfio_driver(self) -> &'static str {
        match self {
            Self::Platform => "vfio-platform",
            Self::Amba => "vfio-amba",
        }
    }

    /// The kernel's option for that driver.
    pub fn vfio_option(self) -> &'static str {
        match self {
            Self::Platform => "CONFIG_VFIO_PLATFORM",
            Self::Amba => "CONFIG_VFIO_AMBA",
        }
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A device, and what sysfs says of it at the time of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    name: String,
    bus: Bus,
    path: PathBuf,
}

impl HostDevice {
    pub(super) fn new(name: &str, bus: Bus, path: PathBuf) -> Self {
        Self { name: name.to_owned(), bus, path }
    }

    /// Its name, such as `2c0a0000.dma`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bus it is on.
    pub fn bus(&self) -> Bus {
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
    /// If that can't be read.
    pub fn driver(&self) -> Result<Option<String>, ReadError> {
        link_name(&self.path.join("driver"))
    }

    /// The one driver that may bind to it, if that has been restricted.
    ///
    /// # Errors
    ///
    /// If that can't be read.
    pub fn driver_override(&self) -> Result<Option<String>, ReadError> {
        let name = read_line(&self.path.join("driver_override"))?;
        // "(null)" is what the kernel prints for none.
        Ok(name.filter(|name| !name.is_empty() && name != "(null)"))
    }

    /// The number of its IOMMU group.
    ///
    /// # Errors
    ///
    /// If that can't be read.
    pub fn group(&self) -> Result<Option<u32>, ReadError> {
        Ok(link_name(&self.path.join("iommu_group"))?.and_then(|number| number.parse().ok()))
    }

    /// Whether an IOMMU is in front of it: it has a group, or would get one from its node's
    /// `iommus` once a driver is bound to it, which is when Linux makes the group.
    ///
    /// # Errors
    ///
    /// If that can't be read.
    pub fn behind_iommu(&self) -> Result<bool, ReadError> {
        Ok(self.group()?.is_some() || canonical(&self.path.join("of_node/iommus"))?.is_some())
    }

    /// The directory of its node in the live device tree.
    ///
    /// # Errors
    ///
    /// If that can't be read.
    pub fn of_node(&self) -> Result<Option<PathBuf>, ReadError> {
        canonical(&self.path.join("of_node"))
    }
}
