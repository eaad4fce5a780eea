//! The mounts of all mount namespaces that this user may inspect (`proc_pid_mountinfo(5)`).

use std::fs;
use std::path::Path;

use boot::order;

use super::super::processes::processes;
use super::super::{DeviceNumber, Host};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The device number of its files: of some file systems not a real device's.
    number: Option<DeviceNumber>,
    /// The mount point.
    pub(super) point: String,
    /// The type of the file system.
    pub(super) kind: String,
    /// The mount source: a device file, a tag, or what else the file system calls it.
    pub(super) source: String,
    /// A process of its mount namespace, if that isn't this process's.
    namespace_of: Option<u32>,
}

impl Mount {
    /// Parses a line of `mountinfo`.
    fn parse(line: &str, namespace_of: Option<u32>) -> Option<Self> {
        let (place, what) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let number = DeviceNumber::parse(place.next()?);
        let point = unescape(place.nth(1)?);
        let mut what = what.split(' ');
        let (kind, source) = (what.next()?.to_owned(), unescape(what.next()?));
        Some(Self { number, point, kind, source, namespace_of })
    }

    /// The mount point, for a message.
    pub(super) fn place(&self) -> String {
        match self.namespace_of {
            Some(pid) => format!("{} in the mount namespace of process {pid}", self.point),
            None => self.point.clone(),
        }
    }

    /// The command that unmounts it; `None` for the root.
    pub(super) fn end(&self) -> Option<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,".contains(c);
        let point = match self.point.chars().all(plain) {
            true => self.point.clone(),
            false => format!("'{}'", self.point.replace('\'', "'\\''")),
        };
        match self.namespace_of {
            Some(pid) => Some(format!("nsenter -t {pid} -m umount {point}")),
            None if self.point == "/" => None,
            None => Some(format!("umount {point}")),
        }
    }
}

/// The mounts of all namespaces.
#[derive(Debug, Default)]
pub(super) struct Mounts(Vec<Mount>);

impl Mounts {
    /// Reads them, those of this process's namespace first.
    pub(super) fn of(host: &Host) -> Self {
        let mut mounts = Vec::new();
        let mut add = |path: &Path, namespace_of| {
            let text = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            mounts.extend(text.lines().filter_map(|line| Mount::parse(line, namespace_of)));
        };
        let namespace = |directory: &Path| fs::read_link(directory.join("ns/mnt")).ok();
        let own = host.proc.join("self");
        add(&own.join("mountinfo"), None);
        let mut seen = order::set(namespace(&own));
        for (pid, directory) in processes(host) {
            if namespace(&directory).is_some_and(|namespace| seen.insert(namespace)) {
                add(&directory.join("mountinfo"), Some(pid));
            }
        }
        Self(mounts)
    }

    /// Those of a block device, by its number or its file. Those of other namespaces only if this one has
    /// none, since most are the same.
    pub(super) fn of_block(&self, number: Option<DeviceNumber>, file: &Path) -> Vec<&Mount> {
        self.find(|mount| {
            (number.is_some() && mount.number == number) || is_file(&mount.source, file, number)
        })
    }

    /// Those of a file system type, and with this source if given.
    pub(super) fn of_kind(&self, kind: &str, source: Option<&str>) -> Vec<&Mount> {
        self.find(|mount| mount.kind == kind && source.is_none_or(|source| mount.source == source))
    }

    fn find(&self, wanted: impl Fn(&Mount) -> bool) -> Vec<&Mount> {
        let (own, others): (Vec<_>, Vec<_>) = self
            .0
            .iter()
            .filter(|mount| wanted(mount))
            .partition(|mount| mount.namespace_of.is_none());
        if own.is_empty() { others } else { own }
    }
}

/// Whether this path is a block device's file.
pub(super) fn is_file(path: &str, file: &Path, number: Option<DeviceNumber>) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let path = Path::new(path);
    if path == file {
        return true;
    }
    // By another name, such as /dev/mapper/root or /dev/disk/by-uuid/….
    path.starts_with("/dev")
        && number.is_some()
        && fs::metadata(path).is_ok_and(|metadata| {
            metadata.file_type().is_block_device()
                && Some(DeviceNumber::of(metadata.rdev())) == number
        })
}

/// Replaces the kernel's escapes of blanks, newlines and backslashes: `\040` and so on.
pub(super) fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal.filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_mount() {
        let line =
            "36 35 259:2 /sub /mnt/my\\040disk rw,noatime shared:1 master:2 - btrfs /dev/x rw";
        let mount = Mount::parse(line, None).unwrap();
        assert_eq!(mount.number, Some(DeviceNumber { major: 259, minor: 2 }));
        assert_eq!((mount.point.as_str(), mount.kind.as_str()), ("/mnt/my disk", "btrfs"));
        assert_eq!(mount.source, "/dev/x");
        for nonsense in ["", " - ", "36 35 259:2 / /mnt rw", "1 2 3 - ext4", "36 35 259:2 / - a b"]
        {
            assert_eq!(Mount::parse(nonsense, None), None, "{nonsense}");
        }
    }

    #[test]
    fn only_complete_escapes_are_replaced() {
        for (text, expected) in
            [("a\\040b", "a b"), ("a\\", "a\\"), ("\\04", "\\04"), ("\\999", "\\999"), ("é", "é")]
        {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }
}
