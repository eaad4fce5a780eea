//! `strait device list`.

use devices::vfio::assign::{self, AssignError};
use devices::vfio::host::{Bus, Host, HostDevice};
use devices::vfio::iommu::{Backend, IommuOptions};
use serde::Serialize;

use super::pci_ids::PciIds;
use crate::error::Error;
use crate::table::Table;

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
    state: State,
    /// Why it can't be assigned as it is.
    reason: Option<String>,
    /// The command that mends it.
    help: Option<String>,
    /// The driver that `unbind` restores.
    driver_before: Option<String>,
    /// What it says that it is: a PCI function by class, vendor and device, others by what of
    /// `compatible` is most specific.
    what: Option<String>,
}

/// Whether a device can be assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// As it is.
    Assignable,
    /// Once it is bound to VFIO.
    NeedsBind,
    /// Not yet, or never.
    Blocked,
}

impl List {
    /// The list for this host.
    ///
    /// # Errors
    ///
    /// A device can't be looked at.
    pub fn of(host: &Host) -> Result<Self, Error> {
        let names = PciIds::installed();
        let mut lines = Vec::new();
        for device in Bus::ALL.into_iter().flat_map(|bus| host.devices_on(bus)) {
            // Bridges stay with the host whatever is done with what is behind them.
            if device.behind_iommu()? && !device.is_bridge()? {
                lines.push(Line::of(host, &names, device)?);
            }
        }
        Ok(Self(lines))
    }

    /// The list as a person reads it.
    pub fn to_text(&self) -> String {
        if self.0.is_empty() {
            return "no device of this host is behind an IOMMU (strait check says more)\n".into();
        }
        let mut table = Table::new(["NAME", "BUS", "DRIVER", "GROUP", "DEVICE", "STATE"]);
        for line in &self.0 {
            let group = line.group.map_or_else(|| "-".to_owned(), |group| group.to_string());
            let driver = line.driver.as_deref().unwrap_or("-");
            let what = line.what.as_deref().unwrap_or("-");
            let state = line.state_text();
            table.row([line.name.as_str(), line.bus, driver, &group, what, &state]);
        }
        table.to_text()
    }
}

impl Line {
    fn of(host: &Host, names: &PciIds, device: HostDevice) -> Result<Self, Error> {
        let group = device.group()?;
        let members = group.map(|group| host.group(group).members()).transpose()?;
        let members = members.unwrap_or_default().into_iter().map(|member| member.name);
        let shares_with = members.filter(|name| name != device.name()).collect();
        let (name, bus, driver) = (device.name().to_owned(), device.bus().name(), device.driver()?);
        let driver_before = host.record(&device)?.and_then(|record| record.driver);
        let what = match device.pci_identity()? {
            Some(identity) => Some(names.describe(identity)),
            None => device.compatible()?.into_iter().next(),
        };
        let (state, error) = state(host, device);
        Ok(Self {
            name,
            bus,
            driver,
            group,
            shares_with,
            state,
            reason: error.as_ref().map(ToString::to_string),
            help: error.as_ref().and_then(AssignError::help),
            driver_before,
            what,
        })
    }

    fn state_text(&self) -> String {
        let mut text = match self.state {
            State::Assignable => "assignable".to_owned(),
            State::NeedsBind => "needs bind".to_owned(),
            State::Blocked => {
                // The name is in the first column already.
                let reason = self.reason.as_deref().unwrap_or_default();
                let prefix = format!("{} can't be assigned: ", self.name);
                reason.strip_prefix(&prefix).unwrap_or(reason).to_owned()
            }
        };
        if !self.shares_with.is_empty() {
            text += &format!(" (shares its group with {})", self.shares_with.join(", "));
        }
        if let Some(driver) = &self.driver_before {
            text += &format!(" (driver before: {driver})");
        }
        text
    }
}

fn state(host: &Host, device: HostDevice) -> (State, Option<AssignError>) {
    let assignment = assign::assess(host, device);
    let reached = assignment
        .and_then(|assignment| Backend::choose(host, &[assignment], IommuOptions::default()));
    match reached {
        Ok(_) => (State::Assignable, None),
        Err(error @ (AssignError::OwnDriver { .. } | AssignError::Unbound { .. })) => {
            (State::NeedsBind, Some(error))
        }
        Err(error) => (State::Blocked, Some(error)),
    }
}
