//! What the host itself uses a device for, and would lose with it.
//!
//! Whatever Linux provides by a device is below it in sysfs: disks and partitions, network interfaces,
//! consoles, cards. [`Usage`] inspects all of it.

mod block;
mod children;
mod class;
mod mounts;

use std::fmt;
use std::fs;

use super::processes::OpenFiles;
use super::{DeviceNumber, Host, HostDevice};
use children::ChildDevices;
use mounts::{Mounts, unescape};

/// A use of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostUse {
    /// A description, such as `nvme0n1p2 is mounted on /srv`.
    pub what: String,
    /// The command that ends it, if there is one.
    pub end: Option<String>,
}

impl HostUse {
    /// A use that no single command ends.
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), end: None }
    }

    /// A use that this command ends.
    fn ended_by(what: impl Into<String>, command: impl Into<String>) -> Self {
        Self { what: what.into(), end: Some(command.into()) }
    }
}

impl fmt::Display for HostUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// What the host uses, at the time of asking.
#[derive(Debug)]
pub struct Usage<'a> {
    host: &'a Host,
    mounts: Mounts,
    /// The swap files and devices.
    swaps: Vec<String>,
    /// The names and numbers of the kernel's consoles.
    consoles: Vec<(String, Option<DeviceNumber>)>,
    open: OpenFiles,
}

impl<'a> Usage<'a> {
    /// Inspects the host. What can't be read is skipped: only root can read all.
    #[cold]
    pub fn of(host: &'a Host) -> Self {
        let text = |name: &str| fs::read_to_string(host.proc.join(name)).unwrap_or_default();
        let first = |line: &str| line.split_whitespace().next().map(unescape);
        let swaps = text("swaps").lines().skip(1).filter_map(first).collect();
        let console = |line: &str| {
            let number = line.split_whitespace().next_back().and_then(DeviceNumber::parse);
            first(line).map(|name| (name, number))
        };
        let consoles = text("consoles").lines().filter_map(console).collect();
        Self { host, mounts: Mounts::of(host), swaps, consoles, open: OpenFiles::of(host) }
    }

    /// The device files that processes have open.
    pub fn open_files(&self) -> &OpenFiles {
        &self.open
    }

    /// What the host uses this device for; nothing if it is bound to VFIO. The devices `along`, which are bound
    /// to VFIO with it, don't count as users.
    #[cold]
    pub fn of_device(&self, device: &HostDevice, along: &[HostDevice]) -> Vec<HostUse> {
        if matches!(device.is_with_vfio(), Ok(true)) {
            return Vec::new();
        }
        let children = ChildDevices::of(device.path());
        let mut uses = block::uses(self, &children.devices);
        uses.extend(class::uses(self, device, along, &children));
        uses
    }
}

#[cfg(test)]
mod tests;
