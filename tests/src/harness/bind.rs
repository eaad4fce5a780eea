//! Handing the host's devices to VFIO, as a person does it: through sysfs.

use super::failure::Failure;
use super::host::Host;

/// The bus a device is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// The platform bus, whose VFIO driver is `vfio-platform`.
    Platform,
    /// The AMBA bus, whose VFIO driver is `vfio-amba`.
    Amba,
    /// The PCI bus, whose VFIO driver is `vfio-pci`.
    Pci,
}

impl Bus {
    /// Its name in sysfs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Amba => "amba",
            Self::Pci => "pci",
        }
    }

    /// The VFIO driver for devices on it.
    pub fn vfio_driver(self) -> &'static str {
        match self {
            Self::Platform => "vfio-platform",
            Self::Amba => "vfio-amba",
            Self::Pci => "vfio-pci",
        }
    }

    /// The bus of the device that sysfs calls `name`.
    ///
    /// # Errors
    ///
    /// It is on none.
    pub fn of(host: &Host, name: &str) -> Result<Self, Failure> {
        let found = host.sh(&format!("cd /sys/bus; ls -d */devices/{name} 2>/dev/null || true"))?;
        match found.split('/').next() {
            Some("platform") => Ok(Self::Platform),
            Some("amba") => Ok(Self::Amba),
            Some("pci") => Ok(Self::Pci),
            _ => Err(host.transcript().failure(format!("{name} is on none of these buses"))),
        }
    }
}

impl Host {
    /// Binds a device to the VFIO driver of its bus.
    ///
    /// # Errors
    ///
    /// There is no such device, or the driver doesn't take it.
    pub fn bind(&self, name: &str) -> Result<(), Failure> {
        let bus = Bus::of(self, name)?;
        self.override_driver(name, bus, bus.vfio_driver())?;
        let driver = self.driver(name)?;
        if driver.as_deref() == Some(bus.vfio_driver()) {
            return Ok(());
        }
        let driver = driver.unwrap_or_else(|| "none".into());
        let log = self.sh("dmesg | tail -n 5")?;
        Err(self.transcript().failure(format!(
            "{name} was to be bound to {}, but its driver is {driver}:\n{log}",
            bus.vfio_driver()
        )))
    }

    /// Lets a device's own driver have it again, where it has one.
    ///
    /// # Errors
    ///
    /// There is no such device.
    pub fn unbind(&self, name: &str) -> Result<(), Failure> {
        let bus = Bus::of(self, name)?;
        self.override_driver(name, bus, "")
    }

    /// The driver a device is bound to.
    ///
    /// # Errors
    ///
    /// There is no such device.
    pub fn driver(&self, name: &str) -> Result<Option<String>, Failure> {
        let bus = Bus::of(self, name)?.name();
        let link = self.run(&format!("readlink /sys/bus/{bus}/devices/{name}/driver"))?;
        Ok(link.output.trim().rsplit('/').next().filter(|s| !s.is_empty()).map(str::to_owned))
    }

    /// The number of a device's IOMMU group.
    ///
    /// # Errors
    ///
    /// There is no such device, or it has no group.
    pub fn group(&self, name: &str) -> Result<u32, Failure> {
        let bus = Bus::of(self, name)?.name();
        let link = self.sh(&format!("readlink /sys/bus/{bus}/devices/{name}/iommu_group"))?;
        link.trim()
            .rsplit('/')
            .next()
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| self.transcript().failure(format!("{name} has no IOMMU group: {link}")))
    }

    fn override_driver(&self, name: &str, bus: Bus, driver: &str) -> Result<(), Failure> {
        let bus = bus.name();
        self.sh(&format!(
            "cd /sys/bus/{bus}/devices/{name} && echo '{driver}' > driver_override && \
             if [ -e driver ]; then echo {name} > driver/unbind; fi && \
             {{ echo {name} > /sys/bus/{bus}/drivers_probe || true; }}"
        ))
        .map(|_| ())
    }
}
