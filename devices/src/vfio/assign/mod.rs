//! The pre-flight: from what the host says, either a device can be assigned, or exactly why not.

mod error;
mod help;
mod suggest;

use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

pub use error::{AssignError, ClosedFile};
pub use help::udev_rules;

use super::host::{Bus, Host, HostDevice, IommuGroup};
use super::inherited::InheritedFd;

/// Which device a person means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRef {
    /// The one that sysfs calls so, or at this path below sysfs.
    Name(String),
    /// The one whose own file (`/dev/vfio/devices/vfioN`) somebody else opened as this descriptor.
    Descriptor(RawFd),
}

impl DeviceRef {
    /// The name or path by which it is meant, if it is.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Descriptor(_) => None,
        }
    }
}

impl From<&str> for DeviceRef {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

/// A device that can be assigned, as far as can be seen without opening it.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The device.
    pub device: HostDevice,
    /// The number of its IOMMU group.
    pub group: u32,
    /// Its own file, where somebody else opened that.
    pub inherited: Option<Arc<InheritedFd>>,
}

impl Assignment {
    /// The device's name in sysfs.
    pub fn name(&self) -> &str {
        self.device.name()
    }
}

/// Checks that a device is on the PCI bus, or that it isn't, as the option has it by which it was
/// named.
///
/// # Errors
///
/// It isn't so.
pub fn check_bus(device: &HostDevice, pci: bool) -> Result<(), AssignError> {
    let (name, bus) = (device.name().to_owned(), device.bus());
    if (bus == Bus::Pci) == pci { Ok(()) } else { Err(AssignError::OtherBus { name, bus }) }
}

/// Checks that all of these devices can be assigned together. Reads the host and changes nothing.
///
/// Whether this process may open what it has to is a question to
/// [`Backend::choose`](super::iommu::Backend::choose); what only shows when the devices are opened (a
/// group in use elsewhere, interrupts that aren't isolated) is left to
/// [`Iommu::open`](super::iommu::Iommu::open).
///
/// # Errors
///
/// The first thing that stands in the way.
pub fn preflight<'a>(
    host: &Host,
    wanted: impl IntoIterator<Item = &'a DeviceRef>,
) -> Result<Vec<Assignment>, AssignError> {
    survey(host, wanted)?.into_iter().map(|found| found.assessed).collect()
}

/// A device that a person means, whether or not it can be assigned as things are.
#[derive(Debug)]
pub struct Found {
    /// The device.
    pub device: HostDevice,
    /// Its assignment, or the first thing that stands in the way.
    pub assessed: Result<Assignment, AssignError>,
}

/// Finds all of these devices and looks at each as [`preflight`] does.
///
/// # Errors
///
/// One isn't there, or is meant twice.
pub fn survey<'a>(
    host: &Host,
    wanted: impl IntoIterator<Item = &'a DeviceRef>,
) -> Result<Vec<Found>, AssignError> {
    let mut all: Vec<Found> = Vec::new();
    for which in wanted {
        let (device, inherited) = find(host, which)?;
        if all.iter().any(|other| other.device.path() == device.path()) {
            return Err(AssignError::Twice { name: device.name().to_owned() });
        }
        let assessed = assess(host, device.clone());
        let assessed = assessed.map(|assignment| Assignment { inherited, ..assignment });
        all.push(Found { device, assessed });
    }
    Ok(all)
}

/// The device that is meant, and its file if that is inherited.
fn find(
    host: &Host,
    which: &DeviceRef,
) -> Result<(HostDevice, Option<Arc<InheritedFd>>), AssignError> {
    match which {
        DeviceRef::Name(name) => Ok((host.find(name)?.ok_or_else(|| no_device(host, name))?, None)),
        DeviceRef::Descriptor(fd) => {
            let (inherited, device) = InheritedFd::device(host, *fd)?;
            Ok((device, Some(Arc::new(inherited))))
        }
    }
}

/// Checks that this device can be assigned, as [`preflight`] does. Reads the host and changes
/// nothing.
///
/// # Errors
///
/// The first thing that stands in the way.
pub fn assess(host: &Host, device: HostDevice) -> Result<Assignment, AssignError> {
    if device.is_bridge()? {
        return Err(AssignError::Bridge { name: device.name().to_owned() });
    }
    // Before the driver: without an IOMMU, VFIO's would be bound in vain.
    let no_group = || AssignError::NoGroup { name: device.name().to_owned() };
    if !device.behind_iommu()? {
        return Err(no_group());
    }
    check_driver(host, &device)?;
    let group = host.group(device.group()?.ok_or_else(no_group)?);
    if group.is_noiommu()? {
        return Err(AssignError::NoIommu { name: device.name().to_owned(), group: group.number() });
    }
    check_members(&device, &group)?;
    Ok(Assignment { device, group: group.number(), inherited: None })
}

/// The error of a name that no device has.
#[cold]
pub(super) fn no_device(host: &Host, name: &str) -> AssignError {
    let find = |name: &String| host.find(name).ok().flatten();
    // Bridges are never assigned.
    let mut names = host.device_names();
    names.retain(|name| find(name).is_some_and(|device| !matches!(device.is_bridge(), Ok(true))));
    let behind_iommu =
        |name: &&String| find(name).is_some_and(|device| matches!(device.behind_iommu(), Ok(true)));
    let candidates = names.iter().filter(behind_iommu).cloned().collect();
    AssignError::NoDevice { name: name.to_owned(), near: suggest::near(name, &names), candidates }
}

/// Checks that the device is bound to VFIO's driver for its bus.
fn check_driver(host: &Host, device: &HostDevice) -> Result<(), AssignError> {
    let (name, bus) = (device.name().to_owned(), device.bus());
    let driver = device.driver()?;
    if driver.as_deref() == Some(bus.vfio_driver()) {
        return Ok(());
    }
    if !host.has_vfio_driver(bus) {
        return Err(AssignError::NoVfioDriver { name, bus });
    }
    if let Some(driver) = driver {
        return Err(AssignError::OwnDriver { name, bus, driver });
    }
    // vfio-platform was asked and refused: that is what `reset_required` does to a device for which
    // the kernel has no reset function. vfio-amba never asks for one.
    let asked = device.driver_override()?.as_deref() == Some(bus.vfio_driver());
    if asked && bus == Bus::Platform && host.flag("vfio_platform", "reset_required")? == Some(true)
    {
        return Err(AssignError::ResetRequired { name });
    }
    Err(AssignError::Unbound { name, bus })
}

/// Checks that no other device of the group is left to a driver that does DMA.
fn check_members(device: &HostDevice, group: &IommuGroup) -> Result<(), AssignError> {
    let mut members = group.members()?;
    members.retain(|member| !member.leaves_dma_to_vfio());
    if members.is_empty() {
        return Ok(());
    }
    Err(AssignError::NotViable { name: device.name().to_owned(), group: group.number(), members })
}

/// Whether this process may open the file for reading and writing.
///
/// # Errors
///
/// As from `faccessat(2)`.
pub fn may_open(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mode = libc::R_OK | libc::W_OK;
    // SAFETY: a NUL-terminated path; the call changes nothing.
    let returned =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) };
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
