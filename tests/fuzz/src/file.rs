//! Files in memory, for what takes a path.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use flate2::write::GzEncoder;

/// A file in memory.
pub struct MemoryFile(File);

impl MemoryFile {
    /// One with this content.
    pub fn new(content: &[u8]) -> Self {
        Self::made(content, 0)
    }

    /// The same, which can be sealed.
    pub fn sealable(content: &[u8]) -> Self {
        Self::made(content, libc::MFD_ALLOW_SEALING)
    }

    fn made(content: &[u8], flags: libc::c_uint) -> Self {
        // SAFETY: the name ends with a zero.
        let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC | flags) };
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        // SAFETY: made just now, and nobody else's.
        let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.write_all(content).unwrap();
        Self(file)
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    /// The file alone.
    pub fn into_file(self) -> File {
        self.0
    }

    /// A path that opens it, while it lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// Compresses.
pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}
