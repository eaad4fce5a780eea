//! `strait device export`.

use std::fmt::{self, Display, Formatter};

use boot::fdt::host::HostTree;
use devices::vfio::assign::{self, DeviceRef};
use devices::vfio::export::{ExportDevice, Format, export};
use devices::vfio::host::{Host, HostDevice};
use devices::vfio::platform::{self, PlatformDevice};
use serde::Serialize;

use crate::cli::{RegionAddress, VfioPlatformOptions};
use crate::error::Error;

/// The nodes of devices for another VMM.
#[derive(Debug, Serialize)]
pub struct Exported {
    devices: Vec<String>,
    #[serde(rename = "for")]
    format: &'static str,
    /// Device tree source.
    source: String,
}

impl Exported {
    /// Those of these devices. They needn't be bound, and nothing is opened.
    ///
    /// # Errors
    ///
    /// There is no such device, or it has something that the VMM can't give to a guest.
    #[cold]
    pub fn of(host: &Host, format: Format, wanted: &[VfioPlatformOptions]) -> Result<Self, Error> {
        let found: Vec<HostDevice> =
            wanted.iter().map(|options| find(host, &options.which)).collect::<Result<_, _>>()?;
        let tree = HostTree::system()?;
        let given = found.iter().zip(wanted.iter().map(|options| &options.device.node));
        let builders = platform::node_builders(host, &tree, &given.collect::<Vec<_>>())?;
        let mut devices = Vec::new();
        for ((device, builder), options) in found.iter().zip(builders).zip(wanted) {
            let options = options.device.clone();
            devices.push(PlatformDevice::open_unbound(&tree, device, builder, options)?);
        }
        let mut exported = Vec::new();
        for (device, options) in devices.iter().zip(wanted) {
            let (name, builder) = (device.name(), device.node_builder());
            exported.push(ExportDevice { name, builder, gpas: addresses(device, options)? });
        }
        let source = export(format, &tree, &exported)?;
        let devices = devices.iter().map(|device| device.name().to_owned()).collect();
        Ok(Self { devices, format: format.name(), source })
    }
}

impl Display for Exported {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// The device of the platform or AMBA bus.
fn find(host: &Host, which: &DeviceRef) -> Result<HostDevice, Error> {
    let mut assessed = assign::assess_all(host, [which])?;
    let device = assessed.pop().ok_or_else(|| Error::new("there is no such device"))?.device;
    assign::check_bus(&device, false)?;
    Ok(device)
}

/// Where its regions are to be (GPA), as far as a person chose that.
fn addresses(
    device: &PlatformDevice,
    options: &VfioPlatformOptions,
) -> Result<Vec<Option<u64>>, Error> {
    let hosts = &device.node_builder().addresses;
    let wanted = options.addresses_of(hosts.len()).map_err(|given| {
        let (name, count) = (device.name(), hosts.len());
        Error::new(format!("{name} has {count} regions, and addr= has addresses for {given}"))
    })?;
    let chosen = wanted.into_iter().zip(hosts).map(|(wanted, host)| match wanted {
        RegionAddress::Auto => None,
        RegionAddress::At(gpa) => Some(gpa),
        RegionAddress::Host => host.as_ref().ok().map(|range| range.start),
    });
    Ok(chosen.collect())
}
