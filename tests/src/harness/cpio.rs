//! Initramfs archives: the "newc" cpio format of the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

/// File type and permission bits of an entry (inode(7)).
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive being written. Names are relative to the root, without a leading slash; a
/// directory must come before what it holds.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

/// What an entry is, beside its name and contents.
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl Archive {
    /// Adds a directory.
    pub(super) fn directory(&mut self, name: &str) {
        self.entry(&Entry { name, mode: DIRECTORY, device: (0, 0), data: &[] });
    }

    /// Adds a regular file that may be executed.
    pub(super) fn file(&mut self, name: &str, data: &[u8]) {
        self.entry(&Entry { name, mode: EXECUTABLE, device: (0, 0), data });
    }

    /// Adds a symbolic link to `target`.
    pub(super) fn symlink(&mut self, name: &str, target: &str) {
        self.entry(&Entry { name, mode: SYMLINK, device: (0, 0), data: target.as_bytes() });
    }

    /// Adds a character device node of that major and minor number.
    pub(super) fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(&Entry { name, mode: CHARACTER_DEVICE, device: (major, minor), data: &[] });
    }

    /// Ends the archive and returns its bytes, a multiple of four of them.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.inodes = 0;
        self.entry(&Entry { name: "TRAILER!!!", mode: 0, device: (0, 0), data: &[] });
        self.bytes
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        self.inodes += u32::from(entry.mode != 0);
        // A file of 4 GiB can't be in an initramfs; a length that lies makes the kernel say so.
        let size = u32::try_from(entry.data.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(entry.name.len() + 1).unwrap_or(u32::MAX);
        let fields = [
            self.inodes,
            entry.mode,
            0, // uid
            0, // gid
            1, // nlink
            0, // mtime
            size,
            0, // major and minor of the device that holds the file
            0,
            entry.device.0,
            entry.device.1,
            name_size,
            0, // check
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(entry.name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    /// Reads an archive back as (name, mode, data), by the format's description.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701", "magic at {at}");
            let field = |index: usize| {
                let from = at + 6 + index * 8;
                u32::from_str_radix(std::str::from_utf8(&bytes[from..from + 8]).unwrap(), 16)
                    .unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = bytes[at + 110..at + 110 + name_size - 1].to_vec();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == b"TRAILER!!!" {
                assert_eq!(bytes.len(), data);
                return entries;
            }
            let name = String::from_utf8(name).unwrap();
            entries.push((name, mode, bytes[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn entries_come_back_as_they_went_in() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/odd", b"12345");
        archive.file("bin/empty", b"");
        archive.symlink("bin/sh", "busybox");
        archive.character_device("console", 5, 1);
        let entries = read(&archive.finish());
        assert_eq!(
            entries,
            [
                ("bin".into(), 0o040_755, vec![]),
                ("bin/odd".into(), 0o100_755, b"12345".to_vec()),
                ("bin/empty".into(), 0o100_755, vec![]),
                ("bin/sh".into(), 0o120_777, b"busybox".to_vec()),
                ("console".into(), 0o020_600, vec![]),
            ]
        );
    }
}
