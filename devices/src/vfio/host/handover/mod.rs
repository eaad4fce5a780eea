//! Changing a device's driver to VFIO's and back.
//!
//! The driver core's interface (`Documentation/ABI/testing/sysfs-bus-platform`, `sysfs-bus-pci`,
//! `Documentation/driver-api/driver-model/binding.rst`): `driver_override` names the one driver that
//! may have a device, `driver/unbind` takes it from its driver, `drivers_probe` offers it to those
//! that may. None of them says whether a driver took it: that is looked at afterwards.
//!
//! What was there before is written down first ([`Record`]), so that a process that is killed
//! half-way leaves a device that [`Handover::unbind`] restores.
//!
//! What the host itself uses ([`Usage`]) is refused before anything is written, and a write that the
//! kernel doesn't come back from is given up: nothing more is tried on that device then, since the
//! kernel has it locked.

mod error;

use std::path::{Path, PathBuf};

pub use error::HandoverError;

use super::super::assign::{self, AssignError};
use super::super::sys::{DeviceFile, Iommufd};
use super::record::Ledger;
use super::{Attributes, Bus, Host, HostDevice, OpenFiles, Owner, Record, Usage, WriteError};

/// How devices are to be given to VFIO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// With all devices of their IOMMU groups.
    pub group: bool,
    /// Also those that the host uses.
    pub force: bool,
    /// Whose their files are to be, now and whenever they are given to VFIO again.
    pub owner: Option<Owner>,
}

/// A device that VFIO's driver has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The device.
    pub device: HostDevice,
    /// The driver before.
    pub before: Option<String>,
    /// It was VFIO's already: nothing was done.
    pub already: bool,
}

/// A device that VFIO's driver has no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The device.
    pub device: HostDevice,
    /// Its driver now.
    pub driver: Option<String>,
    /// It wasn't VFIO's: nothing was done.
    pub already: bool,
}

/// Changes drivers on a host.
pub struct Handover<'a> {
    host: &'a Host,
    sysfs: &'a dyn Attributes,
    ledger: Ledger,
}

impl<'a> Handover<'a> {
    /// On this host, by writing to these attributes.
    pub fn new(host: &'a Host, sysfs: &'a dyn Attributes) -> Self {
        Self { host, sysfs, ledger: Ledger::of(host) }
    }

    /// Binds these devices to VFIO's drivers. All of them or none: what was done is undone when one
    /// of them fails. Where all of them are bound already, nothing is written, and no privilege is
    /// needed.
    ///
    /// # Errors
    ///
    /// The first thing that stood in the way.
    #[cold]
    pub fn bind<S: AsRef<str>>(
        &self,
        names: &[S],
        wanted: &Wanted,
    ) -> Result<Vec<Bound>, HandoverError> {
        let devices = self.devices(names)?;
        let with_vfio = devices.iter().all(|device| matches!(device.is_with_vfio(), Ok(true)));
        if with_vfio && !wanted.group && wanted.owner.is_none() {
            return devices.into_iter().map(|device| self.take(device)).collect();
        }
        let _lock = self.ledger.lock()?;
        let mut bound = Vec::new();
        self.bind_all(devices, wanted, &mut bound).inspect_err(|_| self.undo(&bound))?;
        Ok(bound)
    }

    /// Gives these devices back to the drivers they had, with all devices of their groups where
    /// `group`. One that fails doesn't keep the others.
    ///
    /// # Errors
    ///
    /// The first failure.
    #[cold]
    pub fn unbind<S: AsRef<str>>(
        &self,
        names: &[S],
        group: bool,
    ) -> Result<Vec<Released>, HandoverError> {
        let mut devices = self.devices(names)?;
        let _lock = self.ledger.lock()?;
        if group {
            for member in devices.clone().iter().map(|device| self.host.members_with(device)) {
                add_new(&mut devices, member?);
            }
        }
        let results: Vec<_> = devices.iter().map(|device| self.give_back(device)).collect();
        results.into_iter().collect()
    }

    fn devices<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<HostDevice>, HandoverError> {
        let mut devices = Vec::new();
        for name in names.iter().map(S::as_ref) {
            let found = self.host.find(name)?;
            let device = found.ok_or_else(|| assign::no_device(self.host, name))?;
            add_new(&mut devices, vec![device]);
        }
        Ok(devices)
    }

    #[cold]
    fn bind_all(
        &self,
        mut devices: Vec<HostDevice>,
        wanted: &Wanted,
        bound: &mut Vec<Bound>,
    ) -> Result<(), HandoverError> {
        if wanted.group {
            for device in devices.clone() {
                add_new(&mut devices, self.host.members_with(&device)?);
            }
        }
        let usage = (!wanted.force).then(|| Usage::of(self.host));
        let check = |device: &HostDevice, all: &[HostDevice]| -> Result<(), HandoverError> {
            self.check(device)?;
            match usage.as_ref().map(|usage| usage.of_device(device, all)) {
                Some(uses) if !uses.is_empty() => {
                    Err(HandoverError::UsedByHost { name: device.name().to_owned(), uses })
                }
                _ => Ok(()),
            }
        };
        devices.iter().try_for_each(|device| check(device, &devices))?;
        let mut next = 0;
        while let Some(device) = devices.get(next).cloned() {
            bound.push(self.take(device.clone())?);
            self.give_files(&device, wanted.owner)?;
            if wanted.group {
                // A platform device may have got its group just with the driver.
                let known = devices.len();
                add_new(&mut devices, self.host.members_with(&device)?);
                let mut new = devices.iter().skip(known);
                new.try_for_each(|device| check(device, &devices))?;
            }
            next += 1;
        }
        Ok(())
    }

    /// Checks that a device can be taken, before anything is done to it.
    fn check(&self, device: &HostDevice) -> Result<(), HandoverError> {
        let (name, bus) = (device.name().to_owned(), device.bus());
        if device.is_with_vfio()? {
            return Ok(());
        }
        if device.is_bridge()? {
            return Err(AssignError::Bridge { name }.into());
        }
        if !device.behind_iommu()? {
            return Err(AssignError::NoGroup { name }.into());
        }
        if !self.host.has_vfio_driver(bus) {
            return Err(AssignError::NoVfioDriver { name, bus }.into());
        }
        Ok(())
    }

    /// Gives a bound device's files to `owner`, or else to the one that is remembered.
    fn give_files(&self, device: &HostDevice, owner: Option<Owner>) -> Result<(), HandoverError> {
        let Some(to) = owner.or_else(|| self.ledger.owner(device)) else { return Ok(()) };
        for path in self.host.files_of(device) {
            to.take(&path).map_err(|source| HandoverError::Owner {
                name: device.name().to_owned(),
                path,
                source,
            })?;
        }
        Ok(owner.map_or(Ok(()), |owner| self.ledger.write_owner(device, owner))?)
    }

    /// Binds one device; as it was before if that fails, unless the kernel still has it locked.
    #[cold]
    fn take(&self, device: HostDevice) -> Result<Bound, HandoverError> {
        let before = device.driver()?;
        if before.as_deref() == Some(device.bus().vfio_driver()) {
            return Ok(Bound { device, before, already: true });
        }
        // An override that names VFIO's driver is what somebody left who was interrupted.
        let mut driver_override = device.driver_override()?;
        driver_override = driver_override.filter(|driver| driver != device.bus().vfio_driver());
        self.ledger.write(&device, &Record { driver: before.clone(), driver_override })?;
        match self.change(&device, before.is_some()) {
            Ok(()) => Ok(Bound { device, before, already: false }),
            Err(error @ HandoverError::Hung { .. }) => Err(error),
            Err(error) => {
                self.give_back_or_log(&device);
                Err(error)
            }
        }
    }

    /// Has VFIO's driver, and no other, take a device.
    fn change(&self, device: &HostDevice, bound: bool) -> Result<(), HandoverError> {
        let driver = device.bus().vfio_driver();
        self.write(device, device.path().join("driver_override"), driver)?;
        if bound {
            self.write(device, device.path().join("driver/unbind"), device.name())?;
        }
        self.write(device, self.bus(device).join("drivers_probe"), device.name())?;
        let now = device.driver()?;
        if now.as_deref() == Some(driver) {
            return Ok(());
        }
        let name = device.name().to_owned();
        let platform = device.bus() == Bus::Platform;
        if platform && self.host.flag("vfio_platform", "reset_required")? == Some(true) {
            return Err(AssignError::ResetRequired { name }.into());
        }
        Err(HandoverError::NotTaken { name, driver: driver.to_owned(), now })
    }

    fn undo(&self, bound: &[Bound]) {
        let changed = bound.iter().rev().filter(|bound| !bound.already);
        changed.for_each(|bound| self.give_back_or_log(&bound.device));
    }

    fn give_back_or_log(&self, device: &HostDevice) {
        if let Err(error) = self.give_back(device) {
            log::error!("{error}; to try again: strait device unbind {}", device.name());
        }
    }

    #[cold]
    fn give_back(&self, device: &HostDevice) -> Result<Released, HandoverError> {
        let vfio = device.bus().vfio_driver();
        let record = self.ledger.read(device)?;
        let now = device.driver()?;
        let ours = |driver: &Option<String>| driver.as_deref() == Some(vfio);
        if record.is_none() && !ours(&now) && !ours(&device.driver_override()?) {
            return Ok(Released { device: device.clone(), driver: now, already: true });
        }
        if ours(&now) {
            self.check_unused(device)?;
        }
        let before = record.as_ref().and_then(|record| record.driver_override.as_deref());
        // A line end alone clears it.
        self.write(device, device.path().join("driver_override"), before.unwrap_or("\n"))?;
        if ours(&now) {
            self.write(device, device.path().join("driver/unbind"), device.name())?;
        }
        if device.driver()?.is_none() {
            self.restore(device, record.as_ref())?;
        }
        self.ledger.remove(device)?;
        Ok(Released { device: device.clone(), driver: device.driver()?, already: false })
    }

    /// Binds a device without a driver to the one it had, or where that isn't known, to the one that
    /// wants it.
    fn restore(&self, device: &HostDevice, record: Option<&Record>) -> Result<(), HandoverError> {
        let Some(record) = record else {
            return self.write(device, self.bus(device).join("drivers_probe"), device.name());
        };
        let Some(driver) = &record.driver else { return Ok(()) };
        let directory = self.bus(device).join("drivers").join(driver);
        let (name, driver) = (device.name().to_owned(), driver.clone());
        if !directory.exists() {
            return Err(HandoverError::DriverGone { name, driver, bus: device.bus() });
        }
        let written = self.write(device, directory.join("bind"), device.name());
        match device.driver()? {
            // Perhaps by somebody who asked for it before, and was only answered now.
            now if now.as_deref() == Some(&*driver) => Ok(()),
            now => written.and(Err(HandoverError::NotTaken { name, driver, now })),
        }
    }

    /// Checks that nobody has the device or its group in use: the kernel would wait for them.
    fn check_unused(&self, device: &HostDevice) -> Result<(), HandoverError> {
        let Some(group) = device.group()? else { return Ok(()) };
        let path = self.host.group_node(group);
        let users = OpenFiles::of(self.host).users_by_vfio(self.host, device);
        if !users.is_empty() {
            let (name, files) = (device.name().to_owned(), self.host.files_of(device));
            let path = files.first().cloned().unwrap_or(path);
            return Err(HandoverError::InUse { name, users, path, files });
        }
        let path = if self.host.is_group_busy(device) {
            path
        } else if path.exists() {
            return Ok(());
        } else {
            let cdev = self.host.cdev(device)?;
            match cdev.filter(|cdev| is_bound(&cdev.path, &self.host.iommufd_node())) {
                Some(cdev) => cdev.path,
                None => return Ok(()),
            }
        };
        let (name, files) = (device.name().to_owned(), self.host.files_of(device));
        Err(HandoverError::InUse { name, users, path, files })
    }

    fn bus(&self, device: &HostDevice) -> PathBuf {
        self.host.bus(device.bus())
    }

    fn write(
        &self,
        device: &HostDevice,
        path: impl AsRef<Path>,
        value: &str,
    ) -> Result<(), HandoverError> {
        let path = path.as_ref();
        self.sysfs.write(path, value).map_err(|error| {
            let (name, path) = (device.name().to_owned(), path.to_owned());
            let value = value.trim_end().to_owned();
            match error {
                WriteError::Refused(source) => HandoverError::Write { name, path, value, source },
                WriteError::Hung(hung) => HandoverError::Hung { name, path, value, hung },
            }
        })
    }
}

/// Whether somebody has bound a device to an iommufd, for hosts without files of groups. Its own file
/// doesn't tell until it is to be bound once more.
fn is_bound(cdev: &Path, iommufd: &Path) -> bool {
    let (Ok(device), Ok(iommufd)) = (DeviceFile::open(cdev), Iommufd::open(iommufd)) else {
        return false;
    };
    device.bind(&iommufd).is_err_and(|error| error.is(libc::EINVAL))
}

/// Adds those of `more` that aren't there yet.
fn add_new(devices: &mut Vec<HostDevice>, more: Vec<HostDevice>) {
    for device in more {
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
}

#[cfg(test)]
mod tests;
