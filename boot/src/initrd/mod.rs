//! The initial RAM disk: bytes that the kernel finds through `/chosen`.
//!
//! Linux unpacks it as an initramfs, or boots from it as a RAM disk. What is neither ends in a panic
//! of the guest that doesn't name the file, so it is refused here. Looking at it must not cost what a
//! start takes: the first and last bytes are read, and the rest only where these leave a doubt.

mod content;
mod cpio;
mod error;
mod gzip;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

pub use error::InitrdError;

use crate::file::{BootFile, FileError, Role};
use content::{Content, Refusal};

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
        let owned = || path.to_owned();
        let all = Extent { file: file.file(), start: 0, end: file.size() };
        let content = content::of(all).and_then(|content| match content {
            Content::Wrapped(inside) => content::of(inside).and_then(|content| match content {
                Content::Wrapped(_) => Err(Refusal::Foreign(content::U_BOOT_RAM_DISK)),
                other => Ok((other, inside)),
            }),
            other => Ok((other, all)),
        });
        let (content, extent) = content.map_err(|refusal| match refusal {
            Refusal::Unreadable(source) => InitrdError::File(file.unreadable(source)),
            Refusal::Foreign(format) => InitrdError::Foreign { path: owned(), format },
            Refusal::ForeignInside(format) => InitrdError::ForeignInside { path: owned(), format },
            Refusal::CutOff { wrapper } => InitrdError::CutOff { path: owned(), wrapper },
            Refusal::Damaged { wrapper } => InitrdError::Damaged { path: owned(), wrapper },
            Refusal::XzCheck => InitrdError::XzCheck { path: owned() },
            Refusal::Lz4Frame => InitrdError::Lz4Frame { path: owned() },
        })?;
        if let (Content::FileSystem(kind), false) = (content, is_root) {
            return Err(InitrdError::NotRoot { path: owned(), kind });
        }
        let (offset, size) = (extent.start, extent.size());
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
    pub fn load_into<M>(self, memory: &M, gpa: u64) -> Result<(), FileError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError>,
    {
        let mut file = self.file.file();
        file.seek(SeekFrom::Start(self.offset)).map_err(|e| self.file.unreadable(e))?;
        self.file.load(memory, gpa, self.size)
    }
}

/// Bytes `start..end` of a file.
#[derive(Clone, Copy, Debug)]
struct Extent<'a> {
    file: &'a File,
    start: u64,
    end: u64,
}

impl<'a> Extent<'a> {
    /// How many bytes it has.
    fn size(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// What of it follows its first `count` bytes.
    fn after(self, count: u64) -> Self {
        Self { start: self.start.saturating_add(count).min(self.end), ..self }
    }

    /// Its first bytes, as many as it and `buffer` have.
    fn read(self, buffer: &mut [u8]) -> Result<&[u8], Refusal> {
        let wanted = usize::try_from(self.size()).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        self.file.read_exact_at(buffer, self.start).map_err(Refusal::Unreadable)?;
        Ok(buffer)
    }

    /// Its last bytes, as many as it and `buffer` have.
    fn read_end(self, buffer: &mut [u8]) -> Result<&[u8], Refusal> {
        let skipped = self.size().saturating_sub(buffer.len() as u64);
        self.after(skipped).read(buffer)
    }
}

impl std::io::Read for Extent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = usize::try_from(self.size()).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        let count = self.file.read_at(buffer, self.start)?;
        *self = self.after(count as u64);
        Ok(count)
    }
}
