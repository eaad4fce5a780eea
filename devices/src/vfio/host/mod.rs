//! What the host's sysfs says of devices, their drivers and their IOMMU groups. Reads only.
//!
//! Attributes are those of `Documentation/ABI/testing/sysfs-bus-platform`, `sysfs-kernel-iommu_groups`
//! and `sysfs-class-iommu`; all roots can be moved, for tests.

mod cdev;
mod device;
mod group;
mod interrupts;
mod processes;
mod usage;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use boot::help::Help;
use boot::order;

pub use cdev::{Cdev, DeviceNumber};
pub use device::{HostBus, HostDevice, PciIdentity};
pub use group::{GroupMember, IommuGroup, ReservedRegion};
pub use interrupts::{InterruptEntry, InterruptTable};
pub(crate) use processes::list_users;
pub use processes::{OpenFiles, Process};
pub use usage::{HostUse, Usage};

/// A file in sysfs, procfs or /dev that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read {}", path.display())]
pub struct ReadError {
    /// The file or directory.
    pub path: PathBuf,
    /// The error of the system call.
    #[source]
    pub source: io::Error,
}

impl Help for ReadError {}

/// Where drivers before VFIO's are recorded: a reboot clears it (`hier(7)`, /run), as it does the
/// bindings.
const STATE: &str = "/run/strait";

/// The host, seen through its `/sys`, `/proc` and `/dev`.
#[derive(Clone, Debug)]
pub struct Host {
    sysfs: PathBuf,
    proc: PathBuf,
    dev: PathBuf,
    state: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self::at("/sys", "/proc", "/dev", STATE)
    }
}

impl Host {
    /// A host whose `/sys`, `/proc`, `/dev` and `/run/strait` are elsewhere.
    pub fn at(
        sysfs: impl Into<PathBuf>,
        proc: impl Into<PathBuf>,
        dev: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
    ) -> Self {
        Self { sysfs: sysfs.into(), proc: proc.into(), dev: dev.into(), state: state.into() }
    }

    /// `/sys`.
    pub fn sysfs(&self) -> &Path {
        &self.sysfs
    }

    /// `/dev`.
    pub fn dev(&self) -> &Path {
        &self.dev
    }

    /// The live device tree, as nested directories with a file for each property.
    pub fn device_tree(&self) -> PathBuf {
        self.sysfs.join("firmware/devicetree/base")
    }

    /// The file that opens a VFIO container.
    pub fn container_node(&self) -> PathBuf {
        self.dev.join("vfio/vfio")
    }

    /// The file that opens the VFIO group of this number.
    pub fn group_node(&self, group: u32) -> PathBuf {
        self.dev.join("vfio").join(group.to_string())
    }

    /// The device number of a VFIO group's file; `None` if the kernel has no such group.
    pub fn group_node_number(&self, group: u32) -> Option<DeviceNumber> {
        let path = self.sysfs.join("class/vfio").join(group.to_string()).join("dev");
        DeviceNumber::parse(&attribute(&path)?)
    }

    /// The device with this name on any [`HostBus`], or at this path below `/sys` (a name with a `/`); `None` if
    /// there is none. A PCI function's domain 0000 may be left out.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn find(&self, name: &str) -> Result<Option<HostDevice>, ReadError> {
        if name.contains('/') {
            return self.find_path(Path::new(name));
        }
        if matches!(name, "" | "." | "..") {
            return Ok(None);
        }
        for bus in HostBus::ALL {
            if let Some(device) = self.find_on(bus, name)? {
                return Ok(Some(device));
            }
        }
        // As lspci writes it, without the first domain.
        if name.matches(':').count() == 1 {
            return self.find_on(HostBus::Pci, &format!("0000:{name}"));
        }
        Ok(None)
    }

    /// The device with this name on this bus.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn find_on(&self, bus: HostBus, name: &str) -> Result<Option<HostDevice>, ReadError> {
        let link = self.bus(bus).join("devices").join(name);
        Ok(canonical(&link)?.map(|path| HostDevice::new(name, bus, path)))
    }

    fn find_path(&self, path: &Path) -> Result<Option<HostDevice>, ReadError> {
        let (Some(path), Some(root)) = (canonical(path)?, canonical(&self.sysfs)?) else {
            return Ok(None);
        };
        if !path.starts_with(root) {
            return Ok(None);
        }
        let bus = link_name(&path.join("subsystem"))?
            .and_then(|name| HostBus::ALL.into_iter().find(|bus| bus.name() == name));
        let name = path.file_name().and_then(|name| name.to_str());
        Ok(bus.zip(name).map(|(bus, name)| HostDevice::new(name, bus, path.clone())))
    }

    /// All devices on a bus, sorted by name. What can't be read is left out.
    pub fn devices_on(&self, bus: HostBus) -> Vec<HostDevice> {
        let entries = entries(&self.bus(bus).join("devices"));
        let device = |path: PathBuf| match file_name(&path) {
            "" => None,
            name => self.find_on(bus, name).ok().flatten(),
        };
        let mut devices: Vec<_> = entries.filter_map(device).collect();
        order::sort_by(&mut devices, |a, b| a.name().cmp(b.name()));
        devices
    }

    /// The IOMMU group of this number.
    pub fn group(&self, number: u32) -> IommuGroup {
        let path = self.sysfs.join("kernel/iommu_groups").join(number.to_string());
        IommuGroup::new(number, path)
    }

    /// The devices of a device's group, itself among them, bridges left out.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    #[cold]
    pub fn members_with(&self, device: &HostDevice) -> Result<Vec<HostDevice>, ReadError> {
        let Some(group) = device.group()? else { return Ok(Vec::new()) };
        let mut members = Vec::new();
        for member in self.group(group).members()? {
            let bus = HostBus::ALL.into_iter().find(|bus| bus.name() == member.bus);
            let Some(bus) = bus else { continue };
            let found = self.find_on(bus, &member.name)?;
            if let Some(found) = found.filter(|found| !matches!(found.is_bridge(), Ok(true))) {
                members.push(found);
            }
        }
        Ok(members)
    }

    /// Whether a process has a device of this one's group open, as far as the group's file shows: it can be
    /// open once only, and not while a device of the group is open by its own file.
    pub fn is_group_busy(&self, device: &HostDevice) -> bool {
        device.group().ok().flatten().and_then(|group| self.group_in_use(group)) == Some(true)
    }

    /// As [`is_group_busy`](Self::is_group_busy); `None` if this user may not open the group's file.
    pub(super) fn group_in_use(&self, group: u32) -> Option<bool> {
        match fs::File::options().read(true).write(true).open(self.group_node(group)) {
            Ok(_) => Some(false),
            Err(error) => (error.raw_os_error() == Some(libc::EBUSY)).then_some(true),
        }
    }

    /// Whether the kernel has the VFIO driver for devices on this bus, loaded or built in.
    pub fn has_vfio_driver(&self, bus: HostBus) -> bool {
        self.bus(bus).join("drivers").join(bus.vfio_driver()).exists()
    }

    /// Whether the bus's VFIO driver refuses devices for which the kernel has no reset function: vfio-platform
    /// does with `reset_required` on, vfio-amba and vfio-pci never do.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn is_reset_required(&self, bus: HostBus) -> Result<bool, ReadError> {
        Ok(bus == HostBus::Platform && self.flag("vfio_platform", "reset_required")? == Some(true))
    }

    /// The value of a module's boolean parameter; `None` if there is no such module or parameter.
    ///
    /// # Errors
    ///
    /// The file can't be read.
    pub fn flag(&self, module: &str, parameter: &str) -> Result<Option<bool>, ReadError> {
        let path = self.sysfs.join("module").join(module).join("parameters").join(parameter);
        Ok(read_line(&path)?.map(|value| matches!(value.as_str(), "Y" | "y" | "1")))
    }

    /// Where the records of bound devices are kept ([`driver_binding`](super::driver_binding)).
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// The directory of a bus, `/sys/bus/NAME`.
    pub(super) fn bus(&self, bus: HostBus) -> PathBuf {
        self.sysfs.join("bus").join(bus.name())
    }
}

/// The first word of a field of a file in `/proc` that has a line `NAME: VALUE` for each, such as
/// `/proc/meminfo` and `/proc/PID/status` (Documentation/filesystems/proc.rst).
pub fn proc_field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()
}

/// The first line of a file; `None` if there is no such file.
fn read_line(path: &Path) -> Result<Option<String>, ReadError> {
    let bytes = found(path, fs::read(path))?;
    Ok(bytes.map(|bytes| {
        let text = String::from_utf8_lossy(&bytes);
        text.lines().next().unwrap_or_default().to_owned()
    }))
}

/// The first line of an attribute; `None` also if it can't be read.
fn attribute(path: &Path) -> Option<String> {
    read_line(path).ok().flatten()
}

/// The paths in a directory; none if it can't be read.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The last component of a path; empty if it isn't UTF-8.
fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The last component of where a symbolic link points; `None` if there is no such link.
fn link_name(path: &Path) -> Result<Option<String>, ReadError> {
    let target = found(path, fs::read_link(path))?;
    Ok(target.and_then(|target| Some(target.file_name()?.to_str()?.to_owned())))
}

/// The path without symbolic links; `None` if there is nothing.
fn canonical(path: &Path) -> Result<Option<PathBuf>, ReadError> {
    found(path, path.canonicalize())
}

/// Turns the error of a missing file into `None`.
fn found<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, ReadError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(source) => Err(ReadError { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests;
