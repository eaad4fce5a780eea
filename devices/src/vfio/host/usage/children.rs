//! The child devices of a device in sysfs: the interfaces by which the host uses it.

use std::fs;
use std::path::{Path, PathBuf};

use boot::order;

use super::super::{DeviceNumber, attribute, file_name, link_name};

/// How many directories are visited at most. A USB controller with all its hubs has some thousands.
const MAX_DIRECTORIES: usize = 1 << 16;

/// A child device.
#[derive(Clone, Debug)]
pub(super) struct ChildDevice {
    /// Its directory.
    pub(super) path: PathBuf,
    /// The name of its class or bus.
    pub(super) subsystem: String,
}

impl ChildDevice {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        file_name(&self.path)
    }

    /// The first line of an attribute; `None` if there is none.
    pub(super) fn attribute(&self, name: &str) -> Option<String> {
        attribute(&self.path.join(name))
    }

    /// The number of its device file.
    pub(super) fn number(&self) -> Option<DeviceNumber> {
        DeviceNumber::parse(&self.attribute("dev")?)
    }

    /// The name of its device file below /dev.
    pub(super) fn file(&self) -> String {
        let uevent = fs::read_to_string(self.path.join("uevent")).unwrap_or_default();
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        name.unwrap_or_else(|| self.name()).to_owned()
    }
}

/// The child devices of a device.
#[derive(Debug, Default)]
pub(super) struct ChildDevices {
    /// All of them, sorted by path.
    pub(super) devices: Vec<ChildDevice>,
    /// An empty directory of network interfaces: they are in another network namespace.
    pub(super) hidden_interfaces: bool,
}

impl ChildDevices {
    /// Those below this directory, without itself. What can't be read is skipped.
    pub(super) fn of(directory: &Path) -> Self {
        let mut children = Self::default();
        let mut waiting = subdirectories(directory);
        let mut left = MAX_DIRECTORIES;
        while let (Some(path), Some(less)) = (waiting.pop(), left.checked_sub(1)) {
            left = less;
            let within = subdirectories(&path);
            match link_name(&path.join("subsystem")).ok().flatten() {
                Some(subsystem) => children.devices.push(ChildDevice { path, subsystem }),
                None => {
                    children.hidden_interfaces |= path.ends_with("net") && within.is_empty();
                }
            }
            waiting.extend(within);
        }
        order::sort_by(&mut children.devices, |a, b| a.path.cmp(&b.path));
        children
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}
