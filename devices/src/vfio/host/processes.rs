//! The processes that have device files open (`proc_pid_fd(5)`).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use boot::order;
use serde::Serialize;

use super::{DeviceNumber, Host, HostDevice, attribute, entries, file_name};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Process {
    /// Its PID.
    pub pid: u32,
    /// Its command name (`comm`).
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Processes, for a message behind what they use.
pub(crate) fn list_users(users: &[Process]) -> String {
    let names: Vec<_> = users.iter().map(ToString::to_string).collect();
    if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) }
}

/// The kind of a device file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileKind {
    Block,
    Character,
}

/// The names of udev's processes: they open each new device for a moment.
const UDEV: [&str; 3] = ["(udev-worker)", "systemd-udevd", "udevd"];

/// The device files that other processes have open, at the time of asking.
#[derive(Debug, Default)]
pub struct OpenFiles {
    users: BTreeMap<(FileKind, DeviceNumber), Vec<Process>>,
    /// All processes could be inspected.
    complete: bool,
}

impl OpenFiles {
    /// Inspects all processes that this user may inspect.
    #[cold]
    pub fn of(host: &Host) -> Self {
        let mut open = Self { complete: true, ..Self::default() };
        for (pid, directory) in processes(host) {
            if pid != std::process::id() {
                open.add(pid, &directory);
            }
        }
        open
    }

    fn add(&mut self, pid: u32, directory: &Path) {
        // A process that has exited meanwhile has nothing open.
        let Ok(files) = fs::read_dir(directory.join("fd")) else {
            self.complete &= !directory.exists();
            return;
        };
        let mut numbers = Vec::new();
        for entry in files.flatten().map(|entry| entry.path()) {
            // `stat` only files in /dev: elsewhere it may wait for a network server. A removed file
            // still has its old name here.
            if fs::read_link(&entry).is_ok_and(|target| target.starts_with("/dev")) {
                numbers.extend(number(&entry));
            }
        }
        order::sort(&mut numbers);
        numbers.dedup();
        if numbers.is_empty() {
            return;
        }
        let name = attribute(&directory.join("comm")).unwrap_or_default();
        if UDEV.contains(&name.as_str()) {
            return;
        }
        for number in numbers {
            self.users.entry(number).or_default().push(Process { pid, name: name.clone() });
        }
    }

    /// Whether all processes could be inspected, so that a file that isn't here isn't open.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn users(&self, kind: FileKind, number: DeviceNumber) -> &[Process] {
        self.users.get(&(kind, number)).map_or(&[], Vec::as_slice)
    }

    /// The processes that have this device or another one of its group open through VFIO, by the group's
    /// file or a device's own.
    pub fn users_by_vfio(&self, host: &Host, device: &HostDevice) -> Vec<Process> {
        let group = device.group().ok().flatten();
        let group = group.and_then(|group| host.group_node_number(group));
        let members = host.members_with(device).unwrap_or_default();
        let devices = members.into_iter().chain([device.clone()]);
        let cdevs = devices.filter_map(|device| host.cdev(&device).ok().flatten());
        let numbers = group.into_iter().chain(cdevs.map(|cdev| cdev.number));
        let mut users: Vec<Process> =
            numbers.flat_map(|number| self.users(FileKind::Character, number).to_vec()).collect();
        order::sort(&mut users);
        users.dedup();
        users
    }
}

/// All processes, with their directories.
pub(super) fn processes(host: &Host) -> impl Iterator<Item = (u32, std::path::PathBuf)> {
    entries(&host.proc).filter_map(|path| Some((file_name(&path).parse().ok()?, path)))
}

/// The kind and number of a device file; `None` for another file.
fn number(path: &Path) -> Option<(FileKind, DeviceNumber)> {
    let metadata = fs::metadata(path).ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => FileKind::Block,
        kind if kind.is_char_device() => FileKind::Character,
        _ => return None,
    };
    Some((kind, DeviceNumber::of(metadata.rdev())))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::FakeHost;
    use super::*;

    #[test]
    fn processes_that_have_a_device_file_open_are_found() {
        let fake = FakeHost::with_vfio();
        fake.device("platform", "1.dma", Some("vfio-platform"), Some(3));
        let host = fake.host();
        let device = host.find("1.dma").unwrap().unwrap();
        // Here /dev/null is the group's file, and /dev/zero the device's own.
        fake.write("sys/class/vfio/3/dev", "1:3\n");
        let users = || OpenFiles::of(&host).users_by_vfio(&host, &device);
        assert_eq!(users(), []);
        fake.process(7, "strait", &["/dev/null", "/etc/passwd", "/dev/null"]);
        fake.process(8, "(udev-worker)", &["/dev/null"]);
        fake.process(9, "other", &["/dev/full", "anon_inode:[eventfd]"]);
        let strait = Process { pid: 7, name: "strait".into() };
        assert_eq!(users(), std::slice::from_ref(&strait));
        assert_eq!(strait.to_string(), "process 7 (strait)");
        assert!(OpenFiles::of(&host).is_complete());

        fake.cdev("platform", "1.dma", 5);
        fake.write("sys/devices/platform/1.dma/vfio-dev/vfio5/dev", "1:7\n");
        assert_eq!(users().len(), 2);
        // One that can't be inspected, and this one, which doesn't count.
        fake.write("proc/11/comm", "secret\n");
        fake.process(std::process::id(), "self", &["/dev/null"]);
        assert_eq!(users().len(), 2);
        assert!(!OpenFiles::of(&host).is_complete());
    }
}
