//! `strait device list`.

use std::fmt::{self, Display, Formatter};

use devices::vfio::host::{Host, HostBus, Usage};
use serde::Serialize;

use super::pci_ids::PciIds;
use super::summary::Summary;
use crate::commands::print::Table;
use crate::error::Error;

/// The devices behind an IOMMU.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct List(Vec<Entry>);

/// A device.
#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    summary: Summary,
    /// The IOMMU group; platform devices get theirs with their first driver.
    group: Option<u32>,
    /// The other devices of the group.
    shares_with: Vec<String>,
}

impl List {
    /// The list for this host.
    ///
    /// # Errors
    ///
    /// A device's attributes can't be read.
    pub fn of(host: &Host) -> Result<Self, Error> {
        let (names, usage) = (PciIds::installed(), Usage::of(host));
        let mut entries = Vec::new();
        for device in HostBus::ALL.into_iter().flat_map(|bus| host.devices_on(bus)) {
            // Bridges stay with the host whatever is done with what is behind them.
            if !device.behind_iommu()? || device.is_bridge()? {
                continue;
            }
            let group = device.group()?;
            let members = group.map(|group| host.group(group).members()).transpose()?;
            let members = members.unwrap_or_default().into_iter().map(|member| member.name);
            let shares_with = members.filter(|name| name != device.name()).collect();
            let summary = Summary::of(host, &names, &usage, &device)?;
            entries.push(Entry { summary, group, shares_with });
        }
        Ok(Self(entries))
    }
}

impl Display for List {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f
                .write_str("no device of this host is behind an IOMMU (strait check says more)");
        }
        let mut table = Table::new(["NAME", "BUS", "DRIVER", "GROUP", "DEVICE", "STATE"]);
        for Entry { summary, group, shares_with } in &self.0 {
            let group = group.map_or_else(|| "-".to_owned(), |group| group.to_string());
            let [driver, what] =
                [&summary.driver, &summary.what].map(|text| text.as_deref().unwrap_or("-"));
            let mut state = summary.state_text();
            if !shares_with.is_empty() {
                state += &format!(" (shares its group with {})", shares_with.join(", "));
            }
            if let Some(driver) = &summary.driver_before {
                state += &format!(" (driver before: {driver})");
            }
            table.row([&summary.name, summary.bus.name(), driver, &group, what, &state]);
        }
        table.fmt(f)
    }
}
