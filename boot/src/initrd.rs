//! The initial RAM disk: bytes that the kernel finds through `/chosen`.

use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::file::{BootFile, FileError, Role};

/// An initrd file, open; its size is known, its content not yet read.
#[derive(Debug)]
pub struct Initrd(BootFile);

impl Initrd {
    /// Opens the initrd at `path`.
    ///
    /// # Errors
    ///
    /// It is missing, unreadable, empty, or no regular file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        BootFile::open(Role::Initrd, path).map(Self)
    }

    /// Its path as it was given.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// Reads it straight into guest memory, `size()` bytes from `gpa` on.
    ///
    /// # Errors
    ///
    /// The file can't be read or has shrunk, or the guest has no memory there.
    pub fn load_into<M>(self, memory: &M, gpa: u64) -> Result<(), FileError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError>,
    {
        self.0.load(memory, gpa, self.0.size())
    }
}
