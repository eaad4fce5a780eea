//! The preflight checks: from sysfs, whether a device can be assigned, or exactly why not.

mod access;
mod error;
mod files;
mod vf_token;

use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use boot::order;

pub use error::AssignError;
pub use files::{ClosedFile, VfioFile, may_open};
pub use vf_token::VfToken;

use super::host::{Host, HostBus, HostDevice, IommuGroup};
use super::inherited::InheritedFd;

/// How the command line names a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRef {
    /// By its name in sysfs, or its path below `/sys`.
    Name(String),
    /// By an inherited descriptor of its own file (`/dev/vfio/devices/vfioN`).
    Descriptor(RawFd),
}

impl DeviceRef {
    /// The name or path, if it is named so.
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

/// A device that can be assigned, as far as sysfs shows.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The device.
    pub device: HostDevice,
    /// The number of its IOMMU group.
    pub group: u32,
    /// Its own file, if that is inherited.
    pub inherited: Option<Arc<InheritedFd>>,
    /// What VFIO is to be told before it opens a function with SR-IOV.
    pub vf_token: Option<VfToken>,
}

impl Assignment {
    /// The device's name in sysfs.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Why one of VFIO's files, which this device needs, couldn't be opened.
    pub(super) fn opening(&self, host: &Host, path: &Path, source: io::Error) -> AssignError {
        AssignError::opening(host, &self.device, self.group, path, source)
    }
}

/// Checks that a device is on the PCI bus if `pci`, else that it is on another one: each has an option
/// of its own.
///
/// # Errors
///
/// [`AssignError::OtherBus`].
pub fn check_bus(device: &HostDevice, pci: bool) -> Result<(), AssignError> {
    let (name, bus) = (device.name().to_owned(), device.bus());
    if (bus == HostBus::Pci) == pci { Ok(()) } else { Err(AssignError::OtherBus { name, bus }) }
}

/// Checks that all of these devices can be assigned together. Reads the host and changes nothing.
///
/// Permissions are checked by [`Backend::choose`](super::iommu::Backend::choose). What only opening the
/// devices shows (a group that another process has open, interrupts that aren't isolated) is left to
/// [`Iommu::open`](super::iommu::Iommu::open).
///
/// # Errors
///
/// Of the first device that can't be assigned.
pub fn preflight<'a>(
    host: &Host,
    wanted: impl IntoIterator<Item = &'a DeviceRef>,
) -> Result<Vec<Assignment>, AssignError> {
    assess_all(host, wanted)?.into_iter().map(|device| device.assessed).collect()
}

/// A device, and whether it can be assigned at the moment.
#[derive(Debug)]
pub struct AssessedDevice {
    /// The device.
    pub device: HostDevice,
    /// Its assignment, or why there is none.
    pub assessed: Result<Assignment, AssignError>,
}

/// Finds all of these devices and checks each as [`preflight`] does.
///
/// # Errors
///
/// A device isn't found, or is named twice.
pub fn assess_all<'a>(
    host: &Host,
    wanted: impl IntoIterator<Item = &'a DeviceRef>,
) -> Result<Vec<AssessedDevice>, AssignError> {
    let mut all: Vec<AssessedDevice> = Vec::new();
    for which in wanted {
        let (device, inherited) = find(host, which)?;
        if all.iter().any(|other| other.device.path() == device.path()) {
            return Err(AssignError::Duplicate { name: device.name().to_owned() });
        }
        let assessed = assess(host, device.clone());
        let assessed = assessed.map(|assignment| Assignment { inherited, ..assignment });
        all.push(AssessedDevice { device, assessed });
    }
    Ok(all)
}

/// The device with this name or descriptor, and its file if that is inherited.
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
/// Why it can't be assigned.
pub fn assess(host: &Host, device: HostDevice) -> Result<Assignment, AssignError> {
    // Before the driver: without an IOMMU, binding VFIO's is no remedy.
    check_bindable(host, &device)?;
    check_driver(host, &device)?;
    let no_group = || AssignError::NoGroup { name: device.name().to_owned() };
    let group = host.group(device.group()?.ok_or_else(no_group)?);
    if group.is_noiommu()? {
        return Err(AssignError::NoIommu { name: device.name().to_owned(), group: group.number() });
    }
    check_members(&device, &group)?;
    Ok(Assignment { device, group: group.number(), inherited: None, vf_token: None })
}

/// The error of a name that no device has.
#[cold]
pub(super) fn no_device(host: &Host, name: &str) -> AssignError {
    let mut devices: Vec<_> =
        HostBus::ALL.into_iter().flat_map(|bus| host.devices_on(bus)).collect();
    devices.retain(|device| !matches!(device.is_bridge(), Ok(true)));
    order::sort_by(&mut devices, |a, b| a.name().cmp(b.name()));
    let names = |devices: &[HostDevice]| -> Vec<String> {
        devices.iter().map(|d| d.name().to_owned()).collect()
    };
    let similar = similar(name, &names(&devices));
    devices.retain(|device| matches!(device.behind_iommu(), Ok(true)));
    AssignError::NotFound { name: name.to_owned(), similar, candidates: names(&devices) }
}

/// Checks that the device can be bound to VFIO's driver for its bus, and then be assigned.
pub(super) fn check_bindable(host: &Host, device: &HostDevice) -> Result<(), AssignError> {
    let (name, bus) = (device.name().to_owned(), device.bus());
    if device.is_bridge()? {
        return Err(AssignError::Bridge { name });
    }
    if !device.behind_iommu()? {
        return Err(AssignError::NoGroup { name });
    }
    if !host.has_vfio_driver(bus) {
        return Err(AssignError::NoVfioDriver { name, bus });
    }
    Ok(())
}

/// Checks that the device is bound to VFIO's driver for its bus.
fn check_driver(host: &Host, device: &HostDevice) -> Result<(), AssignError> {
    let (name, bus) = (device.name().to_owned(), device.bus());
    let driver = device.driver()?;
    if driver.as_deref() == Some(bus.vfio_driver()) {
        return Ok(());
    }
    // The driver has probed the device and refused it.
    let probed = device.driver_override()?.as_deref() == Some(bus.vfio_driver());
    if driver.is_none() && probed && host.is_reset_required(bus)? {
        return Err(AssignError::ResetRequired { name });
    }
    Err(AssignError::NotBound { name, bus, driver })
}

/// Checks that the group is viable: no device of it is bound to a driver that does DMA.
fn check_members(device: &HostDevice, group: &IommuGroup) -> Result<(), AssignError> {
    let mut members = group.members()?;
    members.retain(|member| !member.leaves_dma_to_vfio());
    if members.is_empty() {
        return Ok(());
    }
    let (name, group) = (device.name().to_owned(), group.number());
    Err(AssignError::NotViable { name, group, members, source: None })
}

/// Up to three of `names`, those most similar to `name`: that begin with it, or differ in the fewest
/// characters and in at most three.
fn similar(name: &str, names: &[String]) -> Vec<String> {
    let distance = |other: &String| match !name.is_empty() && other.starts_with(name) {
        true => 0,
        false => strsim::levenshtein(name, other),
    };
    let mut similar: Vec<_> = names.iter().map(|other| (distance(other), other)).collect();
    similar.retain(|(distance, other)| *distance <= 3 && *distance < other.len());
    order::sort(&mut similar);
    let least = similar.first().map_or(0, |(distance, _)| *distance);
    similar.retain(|(distance, _)| *distance == least);
    similar.into_iter().take(3).map(|(_, other)| other.clone()).collect()
}

#[cfg(test)]
mod tests;
