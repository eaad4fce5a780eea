//! What the host itself uses a device for, and so would lose with it.
//!
//! Whatever Linux makes of a device is below it in sysfs: disks and their partitions, network
//! interfaces, consoles, cards. [`Usage`] looks at all of it, and answers with what a person has to
//! know before the device is taken.

mod below;
mod block;
mod class;
mod mounts;

use std::fmt;
use std::fs;

use super::processes::OpenFiles;
use super::{DeviceNumber, Host, HostDevice};
use below::Below;
use mounts::{Mounts, unescape};

/// A use of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostUse {
    /// What it is: `nvme0n1p2 is mounted on /srv`.
    pub what: String,
    /// The command that ends it, where one does.
    pub end: Option<String>,
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
    /// The files that are swapped to.
    swaps: Vec<String>,
    /// The names and numbers of the kernel's consoles.
    consoles: Vec<(String, Option<DeviceNumber>)>,
    open: OpenFiles,
}

impl<'a> Usage<'a> {
    /// Looks at the host. What can't be read counts as nothing: only root sees all.
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

    /// The files that processes have open.
    pub fn open_files(&self) -> &OpenFiles {
        &self.open
    }

    /// What the host uses this device for; nothing of a device that is VFIO's. Devices that are taken
    /// `along` with it don't count as needing it.
    #[cold]
    pub fn of_device(&self, device: &HostDevice, along: &[HostDevice]) -> Vec<HostUse> {
        if matches!(device.is_with_vfio(), Ok(true)) {
            return Vec::new();
        }
        let below = Below::of(device.path());
        let mut uses = block::uses(self, &below.nodes);
        uses.extend(class::uses(self, device, along, &below));
        uses
    }
}

#[cfg(test)]
mod tests;
