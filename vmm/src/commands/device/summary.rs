//! What is known of a device without opening it: above all whether it is free, who uses it, and what
//! keeps it from being assigned.

use boot::help::Help;
use std::os::unix::fs::MetadataExt;

use devices::vfio::assign::{self, AssignError};
use devices::vfio::driver_binding::BindRecords;
use devices::vfio::host::{Host, HostBus, HostDevice, Process, Usage};
use devices::vfio::iommu::{Backend, IommuOptions};
use devices::vfio::remedy;
use serde::Serialize;

use super::pci_ids::PciIds;
use crate::error::Error;

/// Whether a device can be assigned, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nobody uses it.
    Free,
    /// The host does, or of another device of its IOMMU group.
    UsedByHost,
    /// A process has it, through VFIO.
    InUse,
    /// It can't be bound or assigned.
    Blocked,
}

/// What is known of a device without opening it.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub name: String,
    pub bus: HostBus,
    pub driver: Option<String>,
    /// The driver that `unbind` restores.
    pub driver_before: Option<String>,
    /// A PCI function's class, vendor and device; of others, the most specific of `compatible`.
    pub what: Option<String>,
    pub state: State,
    /// It is bound to VFIO's driver.
    pub bound: bool,
    /// What the host uses it for.
    host_uses: Vec<String>,
    /// The processes that have it open, as far as this one may see them.
    users: Vec<Process>,
    /// The files by which VFIO gives access to it.
    pub files: Vec<File>,
    /// Why it isn't free, or why it can't be assigned as it is.
    pub reason: Option<String>,
    /// The command that mends it.
    pub help: Option<String>,
}

/// A file, and whose it is.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct File {
    path: String,
    owner: u32,
    group: u32,
}

impl File {
    /// Those of a device.
    pub fn of(host: &Host, device: &HostDevice) -> Vec<Self> {
        let files = host.files_of(device).into_iter().filter_map(|path| {
            let metadata = path.metadata().ok()?;
            let path = path.display().to_string();
            Some(Self { path, owner: metadata.uid(), group: metadata.gid() })
        });
        files.collect()
    }

    /// Files as a person reads them.
    pub fn list(files: &[Self]) -> String {
        let one = |file: &Self| match file.owner {
            0 => file.path.clone(),
            owner => format!("{} (user {owner}'s)", file.path),
        };
        files.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

impl Summary {
    /// Reads what is known of a device.
    ///
    /// # Errors
    ///
    /// Its attributes can't be read.
    pub fn of(
        host: &Host,
        names: &PciIds,
        usage: &Usage<'_>,
        device: &HostDevice,
    ) -> Result<Self, Error> {
        let bound = device.is_with_vfio()?;
        let mut summary = Self {
            name: device.name().to_owned(),
            bus: device.bus(),
            driver: device.driver()?,
            driver_before: driver_before(host, device)?,
            what: match device.pci_identity()? {
                Some(identity) => Some(names.describe(identity)),
                None => device.compatible()?.into_iter().next(),
            },
            state: State::Free,
            bound,
            host_uses: Vec::new(),
            users: Vec::new(),
            files: if bound { File::of(host, device) } else { Vec::new() },
            reason: None,
            help: None,
        };
        let error = assign::assess(host, device.clone())
            .and_then(|assignment| Backend::choose(host, &[assignment], IommuOptions::default()));
        let needs_bind = matches!(error, Err(AssignError::NotBound { .. }));
        if let Err(error) = error {
            (summary.reason, summary.help) = (Some(error.to_string()), error.help());
            summary.state = if needs_bind { State::Free } else { State::Blocked };
        }
        if bound {
            summary.look_at_processes(host, usage, device);
        } else if needs_bind {
            summary.look_at_host(host, usage, device)?;
        }
        Ok(summary)
    }

    /// Whether a process has it.
    fn look_at_processes(&mut self, host: &Host, usage: &Usage<'_>, device: &HostDevice) {
        let open = usage.open_files();
        let users = open.users_by_vfio(host, device);
        if users.is_empty() && (open.is_complete() || !host.is_group_busy(device)) {
            return;
        }
        self.state = State::InUse;
        let who: Vec<_> = users.iter().map(ToString::to_string).collect();
        self.reason = Some(match &who[..] {
            [] => "in use by a process that this user may not see".to_owned(),
            who => format!("in use by {}", who.join(", ")),
        });
        let files: Vec<_> = self.files.iter().map(|file| file.path.as_str()).collect();
        self.help = Some(remedy::show_users(&files));
        self.users = users;
    }

    /// Whether the host uses it, or another device of its group, which would have to be taken along.
    fn look_at_host(
        &mut self,
        host: &Host,
        usage: &Usage<'_>,
        device: &HostDevice,
    ) -> Result<(), Error> {
        let members = host.members_with(device)?;
        let uses = usage.of_device(device, &members);
        let mut ends: Vec<_> = uses.iter().filter_map(|of| of.end.clone()).collect();
        self.host_uses = uses.into_iter().map(|of| of.what).collect();
        for member in members.iter().filter(|member| *member != device) {
            for of in usage.of_device(member, &members) {
                self.host_uses.push(format!("of its group, {}: {}", member.name(), of.what));
                ends.extend(of.end);
            }
        }
        if !self.host_uses.is_empty() {
            self.state = State::UsedByHost;
            self.reason = Some(format!("used by the host: {}", self.host_uses.join("; ")));
            self.help = (!ends.is_empty()).then(|| ends.join(" && "));
        }
        Ok(())
    }

    /// Adds why it couldn't be opened, where it isn't known who has it.
    pub fn add(&mut self, error: Error) {
        if matches!(self.state, State::Free | State::Blocked) {
            self.state = if self.bound { State::Blocked } else { self.state };
            self.reason = Some(error.message().to_owned());
            self.help = error.take_help();
        }
    }

    /// The state in words.
    pub fn state_text(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or_default();
        match self.state {
            State::Free if self.bound => format!("free, bound: {}", File::list(&self.files)),
            State::Free => "free".to_owned(),
            State::UsedByHost | State::InUse => reason.to_owned(),
            State::Blocked => {
                let what = if self.bound { "assigned" } else { "bound" };
                let prefix = format!("{} can't be assigned: ", self.name);
                format!("can't be {what}: {}", reason.strip_prefix(&prefix).unwrap_or(reason))
            }
        }
    }
}

/// The driver that `unbind` restores.
pub fn driver_before(host: &Host, device: &HostDevice) -> Result<Option<String>, Error> {
    Ok(BindRecords::of(host).read(device)?.and_then(|record| record.driver))
}
