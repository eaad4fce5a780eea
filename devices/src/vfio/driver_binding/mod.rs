//! Binding devices to VFIO's drivers, and back to the drivers they had.
//!
//! The driver core's interface (`Documentation/ABI/testing/sysfs-bus-platform`, `sysfs-bus-pci`,
//! `Documentation/driver-api/driver-model/binding.rst`): `driver_override` names the one driver that
//! may bind to a device, `driver/unbind` unbinds it, `drivers_probe` has the drivers that match probe
//! it. None of them reports whether a driver bound: the `driver` link shows that afterwards.
//!
//! The binding before is recorded first ([`BindRecord`]), so that [`DriverBinding::unbind`] can restore
//! the device of a process that was killed half-way.
//!
//! Devices that the host uses ([`Usage`]) are refused before anything is written. A write that doesn't
//! return is abandoned: nothing more is written to that device, since the kernel holds its lock.

mod error;
mod record;
mod sysfs_write;

use std::path::{Path, PathBuf};

pub use error::BindError;
pub use record::{BindRecord, BindRecordError, BindRecords, Owner};
pub use sysfs_write::{AttributeWriter, HungWrite, Sysfs, WriteError};

use crate::{release, stop};

use super::assign::{self, AssignError};
use super::error_chain;
use super::host::{Host, HostDevice, OpenFiles, Usage};
use super::uapi::{DeviceFile, Iommufd};

/// How devices are to be bound to VFIO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// Bind all devices of their IOMMU groups.
    pub group: bool,
    /// Bind also those that the host uses.
    pub force: bool,
    /// The owner of their files, now and whenever they are bound to VFIO again.
    pub owner: Option<Owner>,
}

/// A device after its driver was, or wasn't, changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindOutcome {
    /// The device.
    pub device: HostDevice,
    /// Its driver now.
    pub driver: Option<String>,
    /// Its driver before.
    pub before: Option<String>,
    /// Its driver was changed. If not, nothing was written: it was as asked already.
    pub changed: bool,
}

/// Changes the drivers of a host's devices.
pub struct DriverBinding<'a> {
    host: &'a Host,
    sysfs: &'a dyn AttributeWriter,
    records: BindRecords,
}

impl<'a> DriverBinding<'a> {
    /// Changes drivers on this host by this writer.
    pub fn new(host: &'a Host, sysfs: &'a dyn AttributeWriter) -> Self {
        Self { host, sysfs, records: BindRecords::of(host) }
    }

    /// Binds these devices to VFIO's drivers. All of them or none: what was done is undone when one
    /// of them fails. Where all of them are bound already, nothing is written, and no privilege is
    /// needed.
    ///
    /// # Errors
    ///
    /// Of the first device that couldn't be bound.
    #[cold]
    pub fn bind<S: AsRef<str>>(
        &self,
        names: &[S],
        options: &BindOptions,
    ) -> Result<Vec<BindOutcome>, BindError> {
        let devices = self.devices(names)?;
        let with_vfio = devices.iter().all(|device| matches!(device.is_with_vfio(), Ok(true)));
        if with_vfio && !options.group && options.owner.is_none() {
            return devices.into_iter().map(|device| self.bind_one(device)).collect();
        }
        let _lock = self.records.lock(stop::is_requested)?;
        let mut bound = Vec::new();
        self.bind_all(devices, options, &mut bound).inspect_err(|_| self.undo(&bound))?;
        Ok(bound)
    }

    /// Binds these devices to the drivers they had, with all devices of their groups where `group`. A
    /// failure doesn't stop the others.
    ///
    /// # Errors
    ///
    /// The first failure.
    #[cold]
    pub fn unbind<S: AsRef<str>>(
        &self,
        names: &[S],
        group: bool,
    ) -> Result<Vec<BindOutcome>, BindError> {
        let mut devices = self.devices(names)?;
        // What is given back is waited for, whoever ends strait.
        let _lock = self.records.lock(|| false)?;
        if group {
            self.add_members(&mut devices)?;
        }
        let results: Vec<_> = devices.iter().map(|device| self.unbind_one(device)).collect();
        results.into_iter().collect()
    }

    fn devices<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<HostDevice>, BindError> {
        let mut devices = Vec::new();
        for name in names.iter().map(S::as_ref) {
            let found = self.host.find(name)?;
            let device = found.ok_or_else(|| assign::no_device(self.host, name))?;
            add_new(&mut devices, vec![device]);
        }
        Ok(devices)
    }

    /// Adds the other devices of these devices' groups.
    fn add_members(&self, devices: &mut Vec<HostDevice>) -> Result<(), BindError> {
        for device in devices.clone() {
            add_new(devices, self.host.members_with(&device)?);
        }
        Ok(())
    }

    #[cold]
    fn bind_all(
        &self,
        mut devices: Vec<HostDevice>,
        options: &BindOptions,
        bound: &mut Vec<BindOutcome>,
    ) -> Result<(), BindError> {
        if options.group {
            self.add_members(&mut devices)?;
        }
        let usage = (!options.force).then(|| Usage::of(self.host));
        let check = |device: &HostDevice, all: &[HostDevice]| -> Result<(), BindError> {
            assign::check_bindable(self.host, device)?;
            match usage.as_ref().map(|usage| usage.of_device(device, all)) {
                Some(uses) if !uses.is_empty() => {
                    Err(BindError::UsedByHost { name: device.name().to_owned(), uses })
                }
                _ => Ok(()),
            }
        };
        devices.iter().try_for_each(|device| check(device, &devices))?;
        let mut next = 0;
        while let Some(device) = devices.get(next).cloned() {
            bound.push(self.bind_one(device.clone())?);
            self.change_owner(&device, options.owner)?;
            if options.group {
                // The group of a platform device may have been created with the driver.
                let known = devices.len();
                add_new(&mut devices, self.host.members_with(&device)?);
                let mut new = devices.iter().skip(known);
                new.try_for_each(|device| check(device, &devices))?;
            }
            next += 1;
        }
        Ok(())
    }

    /// Makes a bound device's files `owner`'s, or else the recorded owner's.
    fn change_owner(&self, device: &HostDevice, owner: Option<Owner>) -> Result<(), BindError> {
        let Some(to) = owner.or_else(|| self.records.owner(device)) else { return Ok(()) };
        for path in self.host.files_of(device) {
            to.chown(&path).map_err(|source| BindError::Owner {
                name: device.name().to_owned(),
                path,
                source,
            })?;
        }
        Ok(owner.map_or(Ok(()), |owner| self.records.write_owner(device, owner))?)
    }

    /// Binds one device; restores it if that fails, unless a write is still under way.
    #[cold]
    fn bind_one(&self, device: HostDevice) -> Result<BindOutcome, BindError> {
        let before = device.driver()?;
        if before.as_deref() == Some(device.bus().vfio_driver()) {
            return Ok(BindOutcome { device, driver: before.clone(), before, changed: false });
        }
        // An override that names VFIO's driver is left from an interrupted bind.
        let mut driver_override = device.driver_override()?;
        let is_ours = driver_override.as_deref() == Some(device.bus().vfio_driver());
        driver_override = driver_override.filter(|_| !is_ours);
        // One that somebody else has unbound from VFIO, or an interrupted bind: the driver before is known.
        if !(before.is_none() && is_ours && self.records.read(&device)?.is_some()) {
            let module = before.as_ref().and_then(|driver| self.module(&device, driver));
            let record = BindRecord { driver: before.clone(), module, driver_override };
            self.records.write(&device, &record)?;
        }
        match self.rebind(&device, before.is_some()) {
            Ok(()) => {
                let driver = Some(device.bus().vfio_driver().to_owned());
                Ok(BindOutcome { device, driver, before, changed: true })
            }
            Err(error) if error.is_hung() => Err(error),
            Err(error) => {
                self.unbind_or_log(&device);
                Err(error)
            }
        }
    }

    /// Unbinds a device and has VFIO's driver probe it.
    fn rebind(&self, device: &HostDevice, bound: bool) -> Result<(), BindError> {
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
        if self.host.is_reset_required(device.bus())? {
            return Err(AssignError::ResetRequired { name }.into());
        }
        Err(BindError::NotTaken { name, driver: driver.to_owned(), now })
    }

    fn undo(&self, bound: &[BindOutcome]) {
        let changed = bound.iter().rev().filter(|bound| bound.changed);
        changed.for_each(|bound| self.unbind_or_log(&bound.device));
    }

    fn unbind_or_log(&self, device: &HostDevice) {
        if let Err(error) = self.unbind_one(device) {
            let (error, name) = (error_chain::chain(&error), device.name());
            log::error!("{error}; to try again: strait device unbind {name}");
        }
    }

    #[cold]
    fn unbind_one(&self, device: &HostDevice) -> Result<BindOutcome, BindError> {
        let vfio = device.bus().vfio_driver();
        let record = self.records.read(device)?;
        let now = device.driver()?;
        let ours = |driver: &Option<String>| driver.as_deref() == Some(vfio);
        if record.is_none() && !ours(&now) && !ours(&device.driver_override()?) {
            let device = device.clone();
            return Ok(BindOutcome { device, driver: now.clone(), before: now, changed: false });
        }
        if ours(&now) {
            self.check_unused(device)?;
        }
        let before = record.as_ref().and_then(|record| record.driver_override.as_deref());
        // A newline alone clears it.
        self.write(device, device.path().join("driver_override"), before.unwrap_or("\n"))?;
        if ours(&now) {
            self.write(device, device.path().join("driver/unbind"), device.name())?;
        }
        if device.driver()?.is_none() {
            self.bind_previous(device, record.as_ref())?;
        }
        self.records.remove(device)?;
        let driver = device.driver()?;
        Ok(BindOutcome { device: device.clone(), driver, before: now, changed: true })
    }

    /// Binds a device without a driver to the one it had, or if there is no record, to one that matches.
    fn bind_previous(
        &self,
        device: &HostDevice,
        record: Option<&BindRecord>,
    ) -> Result<(), BindError> {
        let Some(record) = record else {
            return self.write(device, self.bus(device).join("drivers_probe"), device.name());
        };
        let Some(driver) = &record.driver else { return Ok(()) };
        let directory = self.bus(device).join("drivers").join(driver);
        let (name, driver) = (device.name().to_owned(), driver.clone());
        if !directory.exists() {
            let (module, path) = (record.module.clone(), device.path().to_owned());
            return Err(BindError::DriverGone { name, driver, module, path });
        }
        let written = self.write(device, directory.join("bind"), device.name());
        match device.driver()? {
            // Also by a write that was abandoned and has returned meanwhile.
            now if now.as_deref() == Some(&*driver) => Ok(()),
            now => written.and(Err(BindError::NotTaken { name, driver, now })),
        }
    }

    /// Checks that no process has the device or its group open: unbinding would wait for it.
    fn check_unused(&self, device: &HostDevice) -> Result<(), BindError> {
        let is_held =
            |checked: &Result<(), BindError>| matches!(checked, Err(BindError::InUse { .. }));
        release::wait(|| self.check_unused_now(device), is_held)
    }

    fn check_unused_now(&self, device: &HostDevice) -> Result<(), BindError> {
        let Some(group) = device.group()? else { return Ok(()) };
        let (node, files) = (self.host.group_node(group), self.host.files_of(device));
        let users = OpenFiles::of(self.host).users_by_vfio(self.host, device);
        let path = if !users.is_empty() {
            files.first().cloned().unwrap_or(node)
        } else if self.host.is_group_busy(device) {
            node
        } else {
            let cdev = self.host.cdev(device)?.map(|cdev| cdev.path);
            // The group's file shows it, where there is one.
            match cdev.filter(|cdev| !node.exists() && is_bound(cdev, &self.host.iommufd_node())) {
                Some(cdev) => cdev,
                None => return Ok(()),
            }
        };
        Err(BindError::InUse { name: device.name().to_owned(), users, path, files })
    }

    /// The module that a driver is in; `None` if it is built in.
    fn module(&self, device: &HostDevice, driver: &str) -> Option<String> {
        let link = self.bus(device).join("drivers").join(driver).join("module");
        let target = link.read_link().ok()?;
        target.file_name().map(|name| name.to_string_lossy().into_owned())
    }

    fn bus(&self, device: &HostDevice) -> PathBuf {
        self.host.bus(device.bus())
    }

    fn write(
        &self,
        device: &HostDevice,
        path: impl AsRef<Path>,
        value: &str,
    ) -> Result<(), BindError> {
        let path = path.as_ref();
        self.sysfs.write(path, value).map_err(|source| BindError::Write {
            name: device.name().to_owned(),
            path: path.to_owned(),
            value: value.trim_end().to_owned(),
            source,
        })
    }
}

/// Whether a process has bound a device to an iommufd, for hosts without group files. Only an attempt
/// to bind it shows that.
fn is_bound(cdev: &Path, iommufd: &Path) -> bool {
    let (Ok(device), Ok(iommufd)) = (DeviceFile::open(cdev), Iommufd::open(iommufd)) else {
        return false;
    };
    device.bind(&iommufd, None).is_err_and(|error| error.is(libc::EINVAL))
}

/// Adds those of `more` that aren't among `devices`.
fn add_new(devices: &mut Vec<HostDevice>, more: Vec<HostDevice>) {
    for device in more {
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
}

#[cfg(test)]
mod tests;
