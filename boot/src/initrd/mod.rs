//! The initial RAM disk: bytes that the kernel finds through `/chosen`.
//!
//! Linux unpacks it as an initramfs, or boots from it as a RAM disk. What is neither ends in a panic
//! of the guest that doesn't name the file, so it is refused here. Looking at it must not cost what a
//! start takes: the first and last bytes are read, and the rest only where these leave a doubt.

mod content;
mod cpio;
mod error;
mod gzip;

use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

pub use error::{InitrdError, InitrdFault};

use crate::file::{BootFile, Extent, FileError, Role};
use content::Content;

/// An initrd file, open and looked at; its content is not yet read.
#[derive(Debug)]
pub struct Initrd {
    file: BootFile,
    /// Where it starts in the file, behind U-Boot's header.
    offset: u64,
    size: u64,
}

impl Initrd {
    /// Opens the initrd at `path`; U-Boot's header (`uInitrd`) is left out. `is_root` tells that the
    /// kernel is to boot from a RAM disk (`root=/dev/ram0`), so that it may be a file system.
    ///
    /// # Errors
    ///
    /// It is missing, unreadable, empty, no regular file, cut off, or nothing that Linux takes.
    pub fn open(path: &Path, is_root: bool) -> Result<Self, InitrdError> {
        let file = BootFile::open(Role::Initrd, path)?;
        let extent = look_into(file.extent(file.size()), is_root)
            .map_err(|fault| InitrdError::Content { path: path.to_owned(), fault })?;
        let (offset, size) = (extent.start(), extent.size());
        Ok(Self { file, offset, size })
    }

    /// Its path as it was given.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads it straight into guest memory, `size()` bytes from `gpa` on.
    ///
    /// # Errors
    ///
    /// The file can't be read or has shrunk, or the guest has no memory there.
    pub fn load_into<M>(&self, memory: &M, gpa: u64) -> Result<(), FileError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError>,
    {
        let end = self.offset.saturating_add(self.size);
        self.file.load(memory, gpa, self.file.extent(end).after(self.offset))
    }
}

/// Where in a file the initrd is: behind U-Boot's header, if it has one.
fn look_into(all: Extent<'_>, is_root: bool) -> Result<Extent<'_>, InitrdFault> {
    let (content, extent) = match content::of(all)? {
        Content::Wrapped(inside) => (content::of(inside)?, inside),
        other => (other, all),
    };
    match content {
        Content::Initramfs => Ok(extent),
        Content::FileSystem(_) if is_root => Ok(extent),
        Content::FileSystem(kind) => Err(InitrdFault::NotRoot(kind)),
        Content::Wrapped(_) => Err(InitrdFault::Foreign(content::U_BOOT_RAM_DISK)),
    }
}
