//! Block devices in use: mounted, swapped to, part of another, or claimed by whomever.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::super::processes::FileKind;
use super::super::{Host, canonical, read_line};
use super::below::{Below, Node};
use super::mounts::{is_file, unescape};
use super::{HostUse, Usage};

/// The uses of the block devices among these, with their partitions and of all that is made of them.
pub(super) fn uses(usage: &Usage<'_>, nodes: &[Node]) -> Vec<HostUse> {
    let mut search = Search { usage, seen: BTreeSet::new(), uses: Vec::new() };
    let disks: Vec<Node> = nodes
        .iter()
        .filter(|node| node.subsystem == "block")
        .map(|node| head(usage.host, node).unwrap_or_else(|| node.clone()))
        .collect();
    disks.iter().for_each(|disk| search.look(disk, ""));
    if search.uses.is_empty() {
        // Nothing that can be named. The kernel knows of uses that sysfs doesn't show.
        let claimed = disks.iter().find(|disk| is_claimed(usage.host, disk));
        search.uses.extend(claimed.map(|disk| {
            let what = format!(
                "{} is claimed by a file system, a RAID or a volume manager of the host",
                disk.name()
            );
            HostUse { what, end: None }
        }));
    }
    search.uses
}

/// The block device that stands for all paths to an NVMe namespace, of which this is a hidden one
/// (`nvme0c1n1` of `nvme0n1`).
fn head(host: &Host, node: &Node) -> Option<Node> {
    let (controller, rest) = node.name().strip_prefix("nvme")?.split_once('c')?;
    let namespace = rest.split_once('n')?.1;
    block_device(host, &format!("nvme{controller}n{namespace}"))
}

/// The block device of this name.
fn block_device(host: &Host, name: &str) -> Option<Node> {
    let path = canonical(&host.sysfs.join("class/block").join(name)).ok().flatten()?;
    Some(Node { path, subsystem: "block".to_owned() })
}

/// Whether somebody in the kernel has it for itself alone: mounts, swap, RAID and volumes all do
/// (`bd_prepare_to_claim` in the kernel).
fn is_claimed(host: &Host, disk: &Node) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK);
    let opened = options.open(host.dev.join(disk.file()));
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

struct Search<'a> {
    usage: &'a Usage<'a>,
    /// The devices that have been looked at.
    seen: BTreeSet<PathBuf>,
    uses: Vec<HostUse>,
}

impl Search<'_> {
    /// Looks at a block device; `on` says what it is made of.
    fn look(&mut self, device: &Node, on: &str) {
        if !self.seen.insert(device.path.clone()) {
            return;
        }
        let (file, number) = (Path::new("/dev").join(device.file()), device.number());
        let label = format!("{}{on}", called(device));
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
            let end = Some(format!("swapoff {}", file.display()));
            self.uses.push(HostUse { what: format!("{label} is swapped to"), end });
        }
        for user in self.users(device) {
            self.look_at_user(&user, &label);
        }
        let open = number.map_or(&[][..], |number| self.usage.open.users(FileKind::Block, number));
        if self.uses.len() == before {
            self.uses.extend(open.iter().map(|process| HostUse {
                what: format!("{} is open in {process}", file.display()),
                end: None,
            }));
        }
    }

    /// Looks at a block device that is made of another.
    fn look_at_user(&mut self, user: &Node, of: &str) {
        let before = self.uses.len();
        let on = format!(" on {of}");
        let partitions = Below::of(&user.path).nodes;
        self.look(user, &on);
        for partition in partitions.iter().filter(|node| node.subsystem == "block") {
            self.look(partition, &on);
        }
        if self.uses.len() == before {
            self.uses
                .push(HostUse { what: format!("{of} is part of {}", called(user)), end: None });
        }
    }

    /// The block devices that are made of this one: RAIDs, volumes, loops, and compressed memory
    /// that is written back to it.
    fn users(&self, device: &Node) -> Vec<Node> {
        let host = self.usage.host;
        let entries = fs::read_dir(device.path.join("holders")).into_iter().flatten().flatten();
        let holders = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut users: Vec<Node> = holders.filter_map(|name| block_device(host, &name)).collect();
        let (file, number) = (Path::new("/dev").join(device.file()), device.number());
        let all = fs::read_dir(host.sysfs.join("class/block")).into_iter().flatten().flatten();
        for entry in all {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let attribute = match () {
                () if name.starts_with("loop") => "loop/backing_file",
                () if name.starts_with("zram") => "backing_dev",
                () => continue,
            };
            let backing = read_line(&entry.path().join(attribute)).ok().flatten();
            if backing.is_some_and(|path| is_file(&unescape(&path), &file, number)) {
                users.extend(block_device(host, &name));
            }
        }
        users
    }
}

/// A block device's name, with the one a person gave it.
fn called(device: &Node) -> String {
    match device.attribute("dm/name") {
        Some(name) => format!("{} ({name})", device.name()),
        None => device.name().to_owned(),
    }
}

/// The other block devices of the mounted btrfs that has this one: a mount names one of them only.
fn btrfs_members(host: &Host, name: &str) -> Vec<String> {
    let systems = fs::read_dir(host.sysfs.join("fs/btrfs")).into_iter().flatten().flatten();
    let mut devices = systems.map(|entry| entry.path().join("devices"));
    let devices = devices.find(|devices| devices.join(name).exists());
    let entries = devices.and_then(|devices| fs::read_dir(devices).ok()).into_iter().flatten();
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
