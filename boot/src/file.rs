//! A file that is handed to the guest: opened once, its kind and size known while planning.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::shell;
use crate::size::Size;

/// What a file is for; errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `--kernel`
    Kernel,
    /// `--initrd`
    Initrd,
    /// `--dtb-overlay`
    DtbOverlay,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::DtbOverlay => "dtb-overlay",
        })
    }
}

/// Why a file can't be handed to the guest.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum FileError {
    #[error("{role} {} doesn't exist", path.display())]
    Missing { role: Role, path: PathBuf },
    #[error("{role} {} can't be read: permission denied", path.display())]
    Permission { role: Role, path: PathBuf },
    #[error("{role} {} can't be opened", path.display())]
    Open { role: Role, path: PathBuf, source: io::Error },
    #[error("{role} {} is a directory, not a file", path.display())]
    Directory { role: Role, path: PathBuf },
    #[error("{role} {} isn't a regular file", path.display())]
    NotRegular { role: Role, path: PathBuf },
    #[error("{role} {} is empty", path.display())]
    Empty { role: Role, path: PathBuf },
    #[error("{role} {} can't be read", path.display())]
    Read { role: Role, path: PathBuf, source: io::Error },
    #[error(
        "{role} {} has shrunk since it was opened: {} of {} are left",
        path.display(), Size(*found), Size(*expected)
    )]
    Shrunk { role: Role, path: PathBuf, expected: u64, found: u64 },
    #[error("{role} {} has more than {}", path.display(), Size(*limit))]
    TooLarge { role: Role, path: PathBuf, limit: u64 },
    #[error("{role} {} can't be written to guest memory at {gpa:#x}", path.display())]
    Memory { role: Role, path: PathBuf, gpa: u64, source: GuestMemoryError },
}

impl FileError {
    /// What mends it: a command or an option, where there is one.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Missing { role, path } | Self::Directory { role, path } => Some(format!(
                "--{role} FILE takes a file's path; ls -l {}",
                shell::word(
                    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
                )
            )),
            Self::Permission { path, .. } => {
                Some(format!("sudo setfacl -m u:$USER:r {}", shell::word(path)))
            }
            Self::NotRegular { path, .. } => {
                Some(format!("copy it to a file first: cat {} > file", shell::word(path)))
            }
            Self::Empty { .. } => {
                Some("build it or copy it again; ls -l shows its size".to_owned())
            }
            Self::Open { .. }
            | Self::Read { .. }
            | Self::Shrunk { .. }
            | Self::TooLarge { .. }
            | Self::Memory { .. } => None,
        }
    }
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
        let owned = || path.to_owned();
        // Without O_NONBLOCK, opening a FIFO would wait for its writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => FileError::Missing { role, path: owned() },
                io::ErrorKind::PermissionDenied => FileError::Permission { role, path: owned() },
                _ => FileError::Open { role, path: owned(), source },
            })?;
        let metadata =
            file.metadata().map_err(|source| FileError::Open { role, path: owned(), source })?;
        if metadata.is_dir() {
            return Err(FileError::Directory { role, path: owned() });
        }
        if !metadata.is_file() {
            return Err(FileError::NotRegular { role, path: owned() });
        }
        let size = metadata.len();
        if size == 0 {
            return Err(FileError::Empty { role, path: owned() });
        }
        Ok(Self { role, path: owned(), file, size })
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
        let size = size.ok_or_else(|| FileError::TooLarge {
            role: self.role,
            path: self.path.clone(),
            limit,
        })?;
        let mut bytes = vec![0; size];
        let filled = self.read_start(&mut bytes)?;
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Fills `buffer` from the start of the file and returns how much there was; the file's
    /// position doesn't move.
    pub(crate) fn read_start(&self, buffer: &mut [u8]) -> Result<usize, FileError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let offset = filled as u64;
            match self.file.read_at(rest, offset) {
                Ok(0) => break,
                Ok(n) => filled = filled.saturating_add(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.unreadable(source)),
            }
        }
        Ok(filled)
    }

    /// The open file, its position at the start.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Reads the first `length` bytes straight into guest memory at `gpa`, without a buffer.
    pub(crate) fn load<M>(&self, memory: &M, gpa: u64, length: u64) -> Result<(), FileError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError>,
    {
        let mut done = 0;
        let mut file = &self.file;
        while done < length {
            // A file that doesn't fit the address space fails below, where the memory ends.
            let count = usize::try_from(length - done).unwrap_or(usize::MAX);
            let at = gpa.saturating_add(done);
            match memory.read_volatile_from(GuestAddress(at), &mut file, count) {
                Ok(0) => return Err(self.shrunk(length, done)),
                Ok(n) => done = done.saturating_add(n as u64),
                Err(GuestMemoryError::IOError(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(GuestMemoryError::IOError(source)) => return Err(self.unreadable(source)),
                Err(source) => return Err(self.unplaced(at, source)),
            }
        }
        Ok(())
    }

    /// The error of a failed read.
    pub(crate) fn unreadable(&self, source: io::Error) -> FileError {
        FileError::Read { role: self.role, path: self.path.clone(), source }
    }

    /// The error of memory that refused what was written to `gpa`.
    pub(crate) fn unplaced(&self, gpa: u64, source: GuestMemoryError) -> FileError {
        FileError::Memory { role: self.role, path: self.path.clone(), gpa, source }
    }

    /// The error of a file that ended after `found` of the `expected` bytes.
    pub(crate) fn shrunk(&self, expected: u64, found: u64) -> FileError {
        FileError::Shrunk { role: self.role, path: self.path.clone(), expected, found }
    }
}
