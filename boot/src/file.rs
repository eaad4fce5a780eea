//! A file that is handed to the guest: opened once, its kind and size known while planning.

use crate::help::Help;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryError, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use crate::size::Size;

/// What a file is for; errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `--kernel`
    Kernel,
    /// `--firmware`
    Firmware,
    /// `--initrd`
    Initrd,
    /// `--dtb-overlay`
    DtbOverlay,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Firmware => "firmware",
            Self::Initrd => "initrd",
            Self::DtbOverlay => "dtb-overlay",
        })
    }
}

/// A file that can't be handed to the guest.
#[derive(Debug, Error)]
#[error("{role} {} {fault}", path.display())]
pub struct FileError {
    /// What it is for.
    pub role: Role,
    /// Where it is.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub fault: FileFault,
}

/// Why a file can't be handed to the guest.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum FileFault {
    #[error("doesn't exist")]
    Missing,
    #[error("can't be read: permission denied")]
    Permission,
    #[error("can't be opened")]
    Open(#[source] io::Error),
    #[error("is a directory, not a file")]
    Directory,
    #[error("isn't a regular file")]
    NotRegular,
    #[error("is empty")]
    Empty,
    #[error("can't be read")]
    Read(#[source] io::Error),
    #[error(
        "has shrunk since it was opened: {:#} of {:#} are left",
        Size(*found), Size(*expected)
    )]
    Shrunk { expected: u64, found: u64 },
    #[error("has more than {:#}", Size(*limit))]
    TooLarge { limit: u64 },
    #[error("can't be written to guest memory at {gpa:#x}")]
    Memory { gpa: u64, source: GuestMemoryError },
}

impl Help for FileError {
    fn help(&self) -> Option<String> {
        let Self { role, path, fault } = self;
        match fault {
            FileFault::Missing | FileFault::Directory => {
                let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let directory = shell_word(directory.unwrap_or(Path::new(".")));
                Some(format!("--{role} FILE takes a file's path; ls -l {directory}"))
            }
            FileFault::Permission => {
                Some(format!("sudo setfacl -m u:$USER:r {}", shell_word(path)))
            }
            FileFault::NotRegular => {
                Some(format!("copy it to a file first: cat {} > file", shell_word(path)))
            }
            FileFault::Empty => Some("build it or copy it again; ls -l shows its size".to_owned()),
            FileFault::Read(_) => Some(format!(
                "cat {} >/dev/null shows whether it can be read now, dmesg what its disk says",
                shell_word(path)
            )),
            _ => None,
        }
    }
}

/// A path as a POSIX shell takes it for one word (POSIX.1-2017, Shell Command Language, 2.2.2), for
/// commands that a person is told to type.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if text.starts_with('-') {
        return shell_word(&Path::new(".").join(path));
    }
    if text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A regular file that isn't empty, open for reading.
#[derive(Debug)]
pub struct BootFile {
    role: Role,
    path: PathBuf,
    file: File,
    size: u64,
}

impl BootFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// It is missing, unreadable, empty, or no regular file.
    pub fn open(role: Role, path: &Path) -> Result<Self, FileError> {
        let path = path.to_owned();
        match open(&path) {
            Ok((file, size)) => Ok(Self { role, path, file, size }),
            Err(fault) => Err(FileError { role, path, fault }),
        }
    }

    /// Its path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All of it, if that is at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// It is larger, or can't be read.
    pub fn read_whole(&self, limit: u64) -> Result<Vec<u8>, FileError> {
        let size = usize::try_from(self.size).ok().filter(|_| self.size <= limit);
        let size = size.ok_or_else(|| self.error(FileFault::TooLarge { limit }))?;
        let mut bytes = Vec::with_capacity(size);
        let read = self.extent(self.size).read_to_end(&mut bytes);
        read.map_err(|e| self.error(FileFault::Read(e)))?;
        Ok(bytes)
    }

    /// Its first bytes, as many as it and `buffer` have.
    pub(crate) fn read_start<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], FileError> {
        self.extent(self.size).read_start(buffer).map_err(|e| self.error(FileFault::Read(e)))
    }

    /// Its first `size` bytes.
    pub(crate) fn extent(&self, size: u64) -> Extent<'_> {
        Extent { file: &self.file, start: 0, size, position: 0 }
    }

    /// The error of a file that had `expected` bytes and is shorter now, if it is.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn shortened(&self, expected: u64) -> Option<FileError> {
        // By its end: a process in its sandbox may not ask for metadata.
        let found = (&self.file).seek(SeekFrom::End(0)).ok()?;
        (found < expected).then(|| self.error(FileFault::Shrunk { expected, found }))
    }

    /// Reads a part of it straight into guest memory at `gpa`, without a buffer.
    pub(crate) fn load<M>(
        &self,
        memory: &M,
        gpa: u64,
        mut extent: Extent<'_>,
    ) -> Result<(), FileError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError>,
    {
        while extent.left() > 0 {
            // What doesn't fit the address space fails below, where the memory ends.
            let count = usize::try_from(extent.left()).unwrap_or(usize::MAX);
            let at = gpa.saturating_add(extent.position);
            match memory.read_volatile_from(GuestAddress(at), &mut extent, count) {
                Ok(0) => {
                    let (expected, found) = (extent.size, extent.position);
                    return Err(self.error(FileFault::Shrunk { expected, found }));
                }
                Ok(_) => (),
                Err(GuestMemoryError::IOError(e)) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(GuestMemoryError::IOError(e)) => return Err(self.error(FileFault::Read(e))),
                Err(source) => return Err(self.error(FileFault::Memory { gpa: at, source })),
            }
        }
        Ok(())
    }

    /// The error of this file.
    pub(crate) fn error(&self, fault: FileFault) -> FileError {
        FileError { role: self.role, path: self.path.clone(), fault }
    }
}

/// Opens a regular file and tells its size.
fn open(path: &Path) -> Result<(File, u64), FileFault> {
    // Without O_NONBLOCK, opening a FIFO would wait for its writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(
        |source| match source.kind() {
            io::ErrorKind::NotFound => FileFault::Missing,
            io::ErrorKind::PermissionDenied => FileFault::Permission,
            _ => FileFault::Open(source),
        },
    )?;
    let metadata = file.metadata().map_err(FileFault::Open)?;
    if metadata.is_dir() {
        return Err(FileFault::Directory);
    }
    if !metadata.is_file() {
        return Err(FileFault::NotRegular);
    }
    match metadata.len() {
        0 => Err(FileFault::Empty),
        size => Ok((file, size)),
    }
}

/// A part of a file, with a position of its own: what is looked at or loaded without reading all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent<'a> {
    file: &'a File,
    start: u64,
    size: u64,
    position: u64,
}

impl<'a> Extent<'a> {
    /// Where it starts in the file.
    pub(crate) fn start(self) -> u64 {
        self.start
    }

    /// How many bytes it has.
    pub(crate) fn size(self) -> u64 {
        self.size
    }

    /// What of it follows its first `count` bytes.
    pub(crate) fn after(self, count: u64) -> Self {
        let count = count.min(self.size);
        let (start, size) = (self.start.saturating_add(count), self.size.saturating_sub(count));
        Self { start, size, position: 0, ..self }
    }

    /// Its first `count` bytes.
    pub(crate) fn first(self, count: u64) -> Self {
        Self { size: count.min(self.size), position: 0, ..self }
    }

    /// Reads its first bytes, as many as it and `buffer` have.
    pub(crate) fn read_start(self, buffer: &mut [u8]) -> io::Result<&[u8]> {
        let wanted = usize::try_from(self.size).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        self.file.read_exact_at(buffer, self.start)?;
        Ok(buffer)
    }

    /// Reads its last bytes, as many as it and `buffer` have.
    pub(crate) fn read_end(self, buffer: &mut [u8]) -> io::Result<&[u8]> {
        let skipped = self.size.saturating_sub(buffer.len() as u64);
        self.after(skipped).read_start(buffer)
    }

    /// How many bytes there are from its position on.
    fn left(self) -> u64 {
        self.size.saturating_sub(self.position)
    }

    /// How many of `count` bytes there are from its position on.
    fn at_most(self, count: usize) -> usize {
        usize::try_from(self.left()).unwrap_or(usize::MAX).min(count)
    }
}

impl Read for Extent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = self.at_most(buffer.len());
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        let count = self.file.read_at(buffer, self.start.saturating_add(self.position))?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for Extent<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for Extent<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut file = self.file;
        let position = SeekFrom::Start(self.start.saturating_add(self.position));
        file.seek(position).map_err(VolatileMemoryError::IOError)?;
        let mut buffer = buffer.subslice(0, self.at_most(buffer.len()))?;
        let count = file.read_volatile(&mut buffer)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        for (path, expected) in [
            ("/boot/Image-6.12+deb13_arm64", "/boot/Image-6.12+deb13_arm64"),
            ("my kernel", "'my kernel'"),
            ("it's", "'it'\\''s'"),
            ("$HOME/*", "'$HOME/*'"),
            ("-rf", "./-rf"),
        ] {
            assert_eq!(shell_word(Path::new(path)), expected);
        }
    }
}
