//! The files by which devices are opened for iommufd: `/dev/iommu`, and one for each device.
//!
//! A device that is bound to a VFIO driver has a child of class `vfio-dev` in sysfs, which has a
//! `dev` attribute if the kernel makes files for devices (CONFIG_VFIO_DEVICE_CDEV;
//! `Documentation/driver-api/vfio.rst`, "VFIO Device cdev Example").

use std::fmt;
use std::fs;
use std::path::PathBuf;

use super::{Host, HostDevice, ReadError, canonical, found, link_name, read_line};

/// The class of VFIO's devices.
const CLASS: &str = "vfio-dev";

/// The number of a device file (`st_rdev`), of block or of character devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// The major number, of the driver.
    pub major: u32,
    /// The minor number, of the driver's device.
    pub minor: u32,
}

impl DeviceNumber {
    /// The one that `st_rdev` encodes.
    pub(crate) fn of(rdev: u64) -> Self {
        Self { major: libc::major(rdev), minor: libc::minor(rdev) }
    }

    /// Parses what a `dev` attribute says.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A device's own file, `/dev/vfio/devices/vfioN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cdev {
    /// Its path, if it hasn't been removed.
    pub path: PathBuf,
    /// Its device number.
    pub number: DeviceNumber,
}

impl Host {
    /// The file that opens an iommufd.
    pub fn iommufd_node(&self) -> PathBuf {
        self.dev.join("iommu")
    }

    /// The file of a device that is bound to VFIO; `None` if the kernel makes none.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn cdev(&self, device: &HostDevice) -> Result<Option<Cdev>, ReadError> {
        let directory = device.path().join(CLASS);
        for entry in found(&directory, fs::read_dir(&directory))?.into_iter().flatten() {
            let entry = entry.map_err(|source| ReadError { path: directory.clone(), source })?;
            let number = read_line(&entry.path().join("dev"))?;
            if let Some(number) = number.as_deref().and_then(DeviceNumber::parse) {
                let path = self.dev.join("vfio/devices").join(entry.file_name());
                return Ok(Some(Cdev { path, number }));
            }
        }
        Ok(None)
    }

    /// The files through which a process can have a device open, if they exist.
    pub fn files_of(&self, device: &HostDevice) -> Vec<PathBuf> {
        let group = device.group().ok().flatten().map(|group| self.group_node(group));
        let cdev = self.cdev(device).ok().flatten().map(|cdev| cdev.path);
        group.into_iter().chain(cdev).filter(|path| path.exists()).collect()
    }

    /// The device whose own file has this number; `None` if it is no VFIO device's.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn device_of_cdev(&self, number: DeviceNumber) -> Result<Option<HostDevice>, ReadError> {
        let directory = self.numbered(number);
        if link_name(&directory.join("subsystem"))?.as_deref() != Some(CLASS) {
            return Ok(None);
        }
        match canonical(&directory.join("device"))? {
            Some(device) => self.find_path(&device),
            None => Ok(None),
        }
    }

    /// Whether the file with this number opens an iommufd.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn is_iommufd(&self, number: DeviceNumber) -> Result<bool, ReadError> {
        let directory = self.numbered(number);
        let misc = link_name(&directory.join("subsystem"))?.as_deref() == Some("misc");
        let directory = canonical(&directory)?;
        let name = directory.as_deref().and_then(|path| path.file_name());
        Ok(misc && name.is_some_and(|name| name == "iommu"))
    }

    /// The directory of the character device with this number.
    fn numbered(&self, number: DeviceNumber) -> PathBuf {
        self.sysfs.join("dev/char").join(number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::FakeHost;
    use super::*;

    const DMA: &str = "2c0a0000.dma";

    #[test]
    fn a_device_is_found_by_its_file_and_the_file_by_its_device() {
        let fake = FakeHost::with_vfio();
        fake.device("platform", DMA, Some("vfio-platform"), Some(3));
        let host = fake.host();
        let device = host.find(DMA).unwrap().unwrap();
        assert_eq!(host.cdev(&device).unwrap(), None);
        assert_eq!(host.files_of(&device), [fake.path("dev/vfio/3")]);

        fake.cdev("platform", DMA, 5);
        let number = DeviceNumber { major: 511, minor: 5 };
        let path = fake.path("dev/vfio/devices/vfio5");
        assert_eq!(host.cdev(&device).unwrap(), Some(Cdev { path: path.clone(), number }));
        assert_eq!(host.files_of(&device), [fake.path("dev/vfio/3"), path]);
        assert_eq!(host.device_of_cdev(number).unwrap(), Some(device));
        let other = DeviceNumber { major: 511, minor: 6 };
        assert_eq!(host.device_of_cdev(other).unwrap(), None);
    }

    #[test]
    fn files_of_other_classes_are_no_vfio_devices() {
        let fake = FakeHost::with_vfio();
        fake.mkdir("sys/class/misc");
        fake.link("sys/devices/virtual/misc/iommu/subsystem", "sys/class/misc");
        fake.link("sys/dev/char/10:261", "sys/devices/virtual/misc/iommu");
        let (host, number) = (fake.host(), DeviceNumber { major: 10, minor: 261 });
        assert_eq!(host.device_of_cdev(number).unwrap(), None);
        assert!(host.is_iommufd(number).unwrap());
        assert!(!host.is_iommufd(DeviceNumber { major: 1, minor: 3 }).unwrap());
    }

    #[test]
    fn a_device_number_is_two_numbers() {
        let number = |major, minor| Some(DeviceNumber { major, minor });
        for (text, expected) in
            [("511:0", number(511, 0)), ("511", None), ("a:0", None), ("1:-1", None), ("", None)]
        {
            assert_eq!(DeviceNumber::parse(text), expected, "{text}");
        }
    }
}
