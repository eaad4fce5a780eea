//! `strait device list`.

use std::fmt::{self, Display, Formatter};

use devices::vfio::driver_binding::BindRecords;
use devices::vfio::host::{Bus, Host, HostDevice, Usage};
use serde::Serialize;

use super::pci_ids::PciIds;
use super::standing::Standing;
use crate::commands::print::Table;
use crate::error::Error;

/// The devices behind an IOMMU.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct List(Vec<Line>);

/// A device.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    bus: &'static str,
    driver: Option<String>,
    /// The IOMMU group; platform devices get theirs with their first driver.
    group: Option<u32>,
    /// The other devices of the group.
    shares_with: Vec<String>,
    #[serde(flatten)]
    standing: Standing,
    /// The driver that `unbind` restores.
    driver_before: Option<String>,
    /// What it says that it is: a PCI function by class, vendor and device, others by what of
    /// `compatible` is most specific.
    what: Option<String>,
}

impl List {
    /// The list for this host.
    ///
    /// # Errors
    ///
    /// A device can't be looked at.
    pub fn of(host: &Host) -> Result<Self, Error> {
        let (names, usage) = (PciIds::installed(), Usage::of(host));
        let mut lines = Vec::new();
        for device in Bus::ALL.into_iter().flat_map(|bus| host.devices_on(bus)) {
            // Bridges stay with the host whatever is done with what is behind them.
            if device.behind_iommu()? && !device.is_bridge()? {
                lines.push(Line::of(host, &names, &usage, &device)?);
            }
        }
        Ok(Self(lines))
    }
}

impl Display for List {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f
                .write_str("no device of this host is behind an IOMMU (strait check says more)");
        }
        let mut table = Table::new(["NAME", "BUS", "DRIVER", "GROUP", "DEVICE", "STATE"]);
        for line in &self.0 {
            let group = line.group.map_or_else(|| "-".to_owned(), |group| group.to_string());
            let driver = line.driver.as_deref().unwrap_or("-");
            let what = line.what.as_deref().unwrap_or("-");
            let state = line.state_text();
            table.row([line.name.as_str(), line.bus, driver, &group, what, &state]);
        }
        table.fmt(f)
    }
}

impl Line {
    fn of(
        host: &Host,
        names: &PciIds,
        usage: &Usage<'_>,
        device: &HostDevice,
    ) -> Result<Self, Error> {
        let group = device.group()?;
        let members = group.map(|group| host.group(group).members()).transpose()?;
        let members = members.unwrap_or_default().into_iter().map(|member| member.name);
        let shares_with = members.filter(|name| name != device.name()).collect();
        let (name, bus, driver) = (device.name().to_owned(), device.bus().name(), device.driver()?);
        let driver_before = BindRecords::of(host).read(device)?.and_then(|record| record.driver);
        let what = match device.pci_identity()? {
            Some(identity) => Some(names.describe(identity)),
            None => device.compatible()?.into_iter().next(),
        };
        let standing = Standing::of(host, usage, device)?;
        Ok(Self { name, bus, driver, group, shares_with, standing, driver_before, what })
    }

    fn state_text(&self) -> String {
        let mut text = self.standing.to_text(&self.name);
        if !self.shares_with.is_empty() {
            text += &format!(" (shares its group with {})", self.shares_with.join(", "));
        }
        if let Some(driver) = &self.driver_before {
            text += &format!(" (driver before: {driver})");
        }
        text
    }
}
