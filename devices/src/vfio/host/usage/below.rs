//! What is below a device in sysfs: the interfaces by which the host's programs use it.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::{DeviceNumber, link_name, read_line};

/// How many directories are looked at. A USB controller with all its hubs has some thousands.
const LIMIT: usize = 1 << 16;

/// A device below another.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its directory.
    pub(super) path: PathBuf,
    /// Its class or bus.
    pub(super) subsystem: String,
}

impl Node {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The first line of an attribute; `None` where there is none.
    pub(super) fn attribute(&self, name: &str) -> Option<String> {
        read_line(&self.path.join(name)).ok().flatten()
    }

    /// What identifies its file.
    pub(super) fn number(&self) -> Option<DeviceNumber> {
        DeviceNumber::parse(&self.attribute("dev")?)
    }

    /// The name of its file below /dev.
    pub(super) fn file(&self) -> String {
        let uevent = fs::read_to_string(self.path.join("uevent")).unwrap_or_default();
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        name.unwrap_or_else(|| self.name()).to_owned()
    }
}

/// The devices below a directory.
#[derive(Debug, Default)]
pub(super) struct Below {
    /// All of them.
    pub(super) nodes: Vec<Node>,
    /// A place for network interfaces with none in it: they are in another network namespace.
    pub(super) hidden_interfaces: bool,
}

impl Below {
    /// Looks below this directory, which isn't itself among them. What can't be read is left out.
    pub(super) fn of(directory: &Path) -> Self {
        let mut below = Self::default();
        let mut waiting = subdirectories(directory);
        let mut left = LIMIT;
        while let (Some(path), Some(less)) = (waiting.pop(), left.checked_sub(1)) {
            left = less;
            let within = subdirectories(&path);
            match link_name(&path.join("subsystem")).ok().flatten() {
                Some(subsystem) => below.nodes.push(Node { path, subsystem }),
                None => {
                    below.hidden_interfaces |= path.ends_with("net") && within.is_empty();
                }
            }
            waiting.extend(within);
        }
        below.nodes.sort_by(|a, b| a.path.cmp(&b.path));
        below
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}
