//! A fake driver core: what writes to a [`FakeHost`]'s attributes do.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::super::driver_binding::{AttributeWriter, HungWrite, WriteError};
use super::FakeHost;

/// Drivers as sysfs lets them be bound and unbound.
pub(crate) struct FakeKernel<'a> {
    host: &'a FakeHost,
    /// The driver that matches a device without an override.
    pub(crate) natural: BTreeMap<&'static str, &'static str>,
    /// Drivers, and devices that their `probe` refuses.
    pub(crate) refuses: Vec<(&'static str, &'static str)>,
    /// Groups that are created with a device's driver.
    pub(crate) groups: BTreeMap<&'static str, u32>,
    /// Attributes, by the end of their path, that can't be written, with the error number.
    pub(crate) denied: Vec<(&'static str, i32)>,
    /// Attributes, by the end of their path, whose writes don't return.
    pub(crate) hangs: Vec<&'static str>,
    writes: Mutex<Vec<(String, String)>>,
}

impl<'a> FakeKernel<'a> {
    pub(crate) fn new(host: &'a FakeHost) -> Self {
        let (natural, refuses, groups, denied, hangs, writes) = Default::default();
        Self { host, natural, refuses, groups, denied, hangs, writes }
    }

    /// What was written, and to which attribute below `/sys`.
    pub(crate) fn writes(&self) -> Vec<(String, String)> {
        self.writes.lock().unwrap().clone()
    }

    fn device(&self, bus: &str, name: &str) -> io::Result<PathBuf> {
        let path = self.host.path(format!("sys/devices/{bus}/{name}"));
        if path.exists() { Ok(path) } else { Err(io::Error::from_raw_os_error(libc::ENODEV)) }
    }

    /// Has the driver that matches the device probe it.
    fn probe(&self, bus: &str, name: &str) -> io::Result<()> {
        let device = self.device(bus, name)?;
        let only = fs::read_to_string(device.join("driver_override"))?;
        let natural = self.natural.get(name).copied();
        let driver = match only.trim() {
            "(null)" | "" => natural.map(str::to_owned),
            only => Some(only.to_owned()),
        };
        match driver {
            Some(driver) if !device.join("driver").exists() => self.bind(bus, &driver, name),
            _ => Ok(()),
        }
    }

    fn bind(&self, bus: &str, driver: &str, name: &str) -> io::Result<()> {
        let device = self.device(bus, name)?;
        let directory = self.host.path(format!("sys/bus/{bus}/drivers/{driver}"));
        let refused = self.refuses.iter().any(|(d, n)| (*d, *n) == (driver, name));
        if refused || !directory.exists() {
            // As in the driver core, a refused probe isn't an error of the write.
            return Ok(());
        }
        if let Some(group) = self.groups.get(name) {
            self.host.join_group(bus, name, *group);
        }
        symlink(directory, device.join("driver"))
    }
}

impl AttributeWriter for FakeKernel<'_> {
    fn write(&self, path: &Path, value: &str) -> Result<(), WriteError> {
        let below = path.strip_prefix(self.host.path("sys")).unwrap().to_str().unwrap().to_owned();
        self.writes.lock().unwrap().push((below.clone(), value.to_owned()));
        if let Some((_, errno)) = self.denied.iter().find(|(end, _)| below.ends_with(end)) {
            return Err(io::Error::from_raw_os_error(*errno).into());
        }
        if self.hangs.iter().any(|end| below.ends_with(end)) {
            let within = vec!["msleep".to_owned(), "p9_virtio_remove".to_owned()];
            return Err(WriteError::Hung(HungWrite { pid: 7, seconds: 10, within }));
        }
        let parts: Vec<&str> = below.split('/').collect();
        let done = match parts[..] {
            ["devices", bus, name, "driver_override"] => {
                fs::write(self.device(bus, name)?.join("driver_override"), value)
            }
            ["devices", bus, name, "driver", "unbind"] => {
                assert_eq!(name, value);
                fs::remove_file(self.device(bus, name)?.join("driver"))
            }
            ["bus", bus, "drivers_probe"] => self.probe(bus, value),
            ["bus", bus, "drivers", driver, "bind"] => self.bind(bus, driver, value),
            _ => panic!("{below}"),
        };
        Ok(done?)
    }
}
