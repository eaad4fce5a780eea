//! The file that firmware's variables are kept in.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use boot::file::shell_word;
use boot::help::Help;
use boot::size::Size;
use thiserror::Error;

use crate::file_lock;

use super::BANK_SIZE;

/// A file that can't keep variables.
#[derive(Debug, Error)]
#[error("firmware's variables {} {fault}", path.display())]
pub struct VariableFileError {
    /// Where it is.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub fault: VariableFileFault,
}

/// Why a file can't keep variables.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum VariableFileFault {
    #[error("can't be written: permission denied, or its file system is read-only")]
    NotWritable,
    #[error("can't be made: its directory doesn't exist")]
    NoDirectory,
    #[error("can't be opened")]
    Open(#[source] io::Error),
    #[error("isn't a regular file")]
    NotRegular,
    #[error("has {:#}, and a bank of flash {:#}", Size(*size), Size(BANK_SIZE))]
    TooLarge { size: u64 },
    #[error("is in use by another program that has locked it{0}")]
    Locked(String),
    #[error("can't be written: what the guest changed last is lost")]
    Write(#[source] io::Error),
}

impl Help for VariableFileError {
    fn help(&self) -> Option<String> {
        let word = shell_word(&self.path);
        Some(match &self.fault {
            VariableFileFault::NotWritable => {
                format!("cp {word} vars.fd, and --firmware …,vars=vars.fd")
            }
            VariableFileFault::NoDirectory => {
                let directory = self.path.parent().unwrap_or(Path::new("."));
                format!("mkdir -p {}", shell_word(directory))
            }
            VariableFileFault::NotRegular => {
                "vars=FILE takes a file's path; one that isn't there is made".to_owned()
            }
            VariableFileFault::TooLarge { .. } => format!("ls -l {word}; a new one is made empty"),
            VariableFileFault::Locked(_) => {
                format!("fuser -v {word} shows who has it open; each guest has a file of its own")
            }
            VariableFileFault::Open(_) | VariableFileFault::Write(_) => return None,
        })
    }
}

/// A file for variables, open and locked.
#[derive(Debug)]
pub struct VariableFile {
    path: PathBuf,
    file: File,
}

impl VariableFile {
    /// Opens the file at `path`; `None` if there is none yet.
    ///
    /// # Errors
    ///
    /// It can't be written, is no regular file, too large for a bank, or another guest's.
    pub fn open(path: &Path) -> Result<Option<Self>, VariableFileError> {
        match open(path, false) {
            Ok(file) => Ok(Some(Self { path: path.to_owned(), file })),
            Err(VariableFileFault::NoDirectory) if has_directory(path) => Ok(None),
            Err(fault) => Err(VariableFileError { path: path.to_owned(), fault }),
        }
    }

    /// Opens the file at `path`, or makes an empty one.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open), or it can't be made.
    pub fn open_or_create(path: &Path) -> Result<Self, VariableFileError> {
        let file = open(path, true);
        let file = file.map_err(|fault| VariableFileError { path: path.to_owned(), fault })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Its content.
    pub(super) fn content(&self) -> impl Read {
        Content { file: &self.file, position: 0 }
    }

    /// Writes to it at this offset.
    pub(super) fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// Waits until what was written is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The error of this file.
    pub(super) fn error(&self, fault: VariableFileFault) -> VariableFileError {
        VariableFileError { path: self.path.clone(), fault }
    }
}

fn has_directory(path: &Path) -> bool {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).is_dir()
}

/// Opens and locks a file; one that is missing is [`VariableFileFault::NoDirectory`] unless it is made.
fn open(path: &Path, create: bool) -> Result<File, VariableFileFault> {
    let mut options = OpenOptions::new();
    // Without O_NONBLOCK, opening a FIFO would wait for its reader.
    options.read(true).write(true).create(create).truncate(false).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => VariableFileFault::NoDirectory,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            VariableFileFault::NotWritable
        }
        io::ErrorKind::IsADirectory => VariableFileFault::NotRegular,
        _ => VariableFileFault::Open(source),
    })?;
    let metadata = file.metadata().map_err(VariableFileFault::Open)?;
    if !metadata.is_file() {
        return Err(VariableFileFault::NotRegular);
    }
    if metadata.len() > BANK_SIZE {
        return Err(VariableFileFault::TooLarge { size: metadata.len() });
    }
    match file_lock::lock(&file, true) {
        Ok(true) => {}
        Ok(false) => return Err(VariableFileFault::Locked(file_lock::users(path))),
        Err(e) => log::warn!("{}: this host can't lock it: {e}", path.display()),
    }
    Ok(file)
}

/// A file from its start to its end, whatever its own position is.
struct Content<'a> {
    file: &'a File,
    position: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(BANK_SIZE.saturating_sub(self.position)).unwrap_or_default();
        let count = buffer.len().min(left);
        let count =
            self.file.read_at(buffer.get_mut(..count).unwrap_or_default(), self.position)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}
