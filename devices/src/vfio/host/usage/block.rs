//! Block devices in use: mounted, used as swap, part of another block device, or claimed.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::super::processes::FileKind;
use super::super::{Host, attribute, canonical, entries, file_name};
use super::children::{ChildDevice, ChildDevices};
use super::mounts::{is_file, unescape};
use super::{HostUse, Usage};

/// The uses of the block devices among these, of their partitions, and of what is built on them.
pub(super) fn uses(usage: &Usage<'_>, devices: &[ChildDevice]) -> Vec<HostUse> {
    let mut search = Search { usage, seen: BTreeSet::new(), uses: Vec::new() };
    let disks: Vec<ChildDevice> = devices
        .iter()
        .filter(|node| node.subsystem == "block")
        .map(|node| head(usage.host, node).unwrap_or_else(|| node.clone()))
        .collect();
    disks.iter().for_each(|disk| search.visit(disk, ""));
    if search.uses.is_empty() {
        // The kernel has uses that sysfs doesn't show.
        let claimed = disks.iter().find(|disk| is_claimed(usage.host, disk));
        search.uses.extend(claimed.map(|disk| {
            HostUse::new(format!(
                "{} is claimed by a file system, a RAID or a volume manager of the host",
                disk.name()
            ))
        }));
    }
    search.uses
}

/// The multipath block device of an NVMe namespace (`nvme0n1`), of which this one (`nvme0c1n1`) is a
/// hidden path.
fn head(host: &Host, node: &ChildDevice) -> Option<ChildDevice> {
    let (controller, rest) = node.name().strip_prefix("nvme")?.split_once('c')?;
    let namespace = rest.split_once('n')?.1;
    block_device(host, &format!("nvme{controller}n{namespace}"))
}

/// The block device of this name.
fn block_device(host: &Host, name: &str) -> Option<ChildDevice> {
    let path = canonical(&host.sysfs.join("class/block").join(name)).ok().flatten()?;
    Some(ChildDevice { path, subsystem: "block".to_owned() })
}

/// Whether the kernel has claimed it, as for mounts, swap, RAID and volumes (`bd_prepare_to_claim`).
fn is_claimed(host: &Host, disk: &ChildDevice) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK);
    let opened = options.open(host.dev.join(disk.file()));
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

struct Search<'a> {
    usage: &'a Usage<'a>,
    /// The devices that have been visited.
    seen: BTreeSet<PathBuf>,
    uses: Vec<HostUse>,
}

impl Search<'_> {
    /// Visits a block device; `on` is what it is built on.
    fn visit(&mut self, device: &ChildDevice, on: &str) {
        if !self.seen.insert(device.path.clone()) {
            return;
        }
        let (file, number) = (Path::new("/dev").join(device.file()), device.number());
        let label = format!("{}{on}", label(device));
        let before = self.uses.len();
        let mut mounts = self.usage.mounts.of_block(number, &file);
        if mounts.is_empty() {
            let others = btrfs_members(self.usage.host, device.name());
            mounts = others
                .iter()
                .map(|name| Path::new("/dev").join(name))
                .flat_map(|file| self.usage.mounts.of_block(None, &file))
                .collect();
        }
        if !mounts.is_empty() {
            let places: Vec<_> = mounts.iter().map(|mount| mount.place()).collect();
            let ends: Option<Vec<_>> = mounts.iter().rev().map(|mount| mount.end()).collect();
            let what = format!("{label} is mounted on {}", places.join(" and "));
            self.uses.push(HostUse { what, end: ends.map(|ends| ends.join(" && ")) });
        }
        if self.usage.swaps.iter().any(|swap| is_file(swap, &file, number)) {
            let (what, command) =
                (format!("{label} is swapped to"), format!("swapoff {}", file.display()));
            self.uses.push(HostUse::ended_by(what, command));
        }
        for user in self.users(device) {
            self.visit_user(&user, &label);
        }
        let open = number.map_or(&[][..], |number| self.usage.open.users(FileKind::Block, number));
        if self.uses.len() == before {
            let use_of = |process| HostUse::new(format!("{} is open in {process}", file.display()));
            self.uses.extend(open.iter().map(use_of));
        }
    }

    /// Visits a block device that is built on another.
    fn visit_user(&mut self, user: &ChildDevice, of: &str) {
        let before = self.uses.len();
        let on = format!(" on {of}");
        let partitions = ChildDevices::of(&user.path).devices;
        self.visit(user, &on);
        for partition in partitions.iter().filter(|node| node.subsystem == "block") {
            self.visit(partition, &on);
        }
        if self.uses.len() == before {
            self.uses.push(HostUse { what: format!("{of} is part of {}", label(user)), end: None });
        }
    }

    /// The block devices that are built on this one: RAIDs, volumes, loop devices, and zram with
    /// writeback.
    fn users(&self, device: &ChildDevice) -> Vec<ChildDevice> {
        let host = self.usage.host;
        let holders = entries(&device.path.join("holders"));
        let mut users: Vec<ChildDevice> =
            holders.filter_map(|holder| block_device(host, file_name(&holder))).collect();
        let (file, number) = (Path::new("/dev").join(device.file()), device.number());
        for path in entries(&host.sysfs.join("class/block")) {
            let name = file_name(&path);
            let backing = match () {
                () if name.starts_with("loop") => attribute(&path.join("loop/backing_file")),
                () if name.starts_with("zram") => attribute(&path.join("backing_dev")),
                () => None,
            };
            if backing.is_some_and(|path| is_file(&unescape(&path), &file, number)) {
                users.extend(block_device(host, name));
            }
        }
        users
    }
}

/// A block device's name, with that of its volume.
fn label(device: &ChildDevice) -> String {
    match device.attribute("dm/name") {
        Some(name) => format!("{} ({name})", device.name()),
        None => device.name().to_owned(),
    }
}

/// The block devices of the btrfs that has this one: its mounts name only one of them.
fn btrfs_members(host: &Host, name: &str) -> Vec<String> {
    let mut members = entries(&host.sysfs.join("fs/btrfs")).map(|system| system.join("devices"));
    let Some(members) = members.find(|members| members.join(name).exists()) else {
        return Vec::new();
    };
    entries(&members).map(|member| file_name(&member).to_owned()).collect()
}
