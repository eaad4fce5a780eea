//! The file or block device that a disk is made of: opened, judged and locked while planning.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use boot::format::{Compressor, DiskImage, Format, START_SIZE};

use crate::file_lock;

use super::error::{ImageError, ImageFault};
use super::options::Access;
use super::request::SECTOR;
use super::topology::{self, Topology};

/// Which file it is, by whatever path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// A block device's number.
    Device(u64),
    /// A file system's, and a file's in it.
    File(u64, u64),
}

/// A raw image, open.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    access: Access,
    identity: Identity,
    size: u64,
    topology: Topology,
    in_memory: bool,
}

impl Image {
    /// Opens the image at `path`.
    ///
    /// # Errors
    ///
    /// It is no raw image, of a wrong size, or the host doesn't let it be opened.
    #[cold]
    pub fn open(path: &Path, access: Access) -> Result<Self, ImageError> {
        open(path, access).map_err(|fault| ImageError { path: path.to_owned(), access, fault })
    }

    /// Locks it against other processes, against all that open it as a disk, too, if it is written.
    /// A host that can't lock it is told of in the log.
    ///
    /// # Errors
    ///
    /// Another one has locked it.
    #[cold]
    pub fn lock(&self) -> Result<(), ImageError> {
        match file_lock::lock(&self.file, self.is_written()) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let users = file_lock::users(&self.path);
                Err(self.error(ImageFault::Locked(users)))
            }
            Err(e) => {
                log::warn!(
                    "{}: this host can't lock it ({e}): nothing keeps another program from writing \
                     to it while the guest runs",
                    self.path.display()
                );
                Ok(())
            }
        }
    }

    /// Whether the two can't be disks at once: they are the same file, and one of them is written.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.identity == other.identity && (self.is_written() || other.is_written())
    }

    /// Its path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// It is a device of the host, and no file.
    pub fn is_device(&self) -> bool {
        matches!(self.identity, Identity::Device(_))
    }

    /// How it is best accessed.
    pub(super) fn topology(&self) -> Topology {
        self.topology
    }

    /// What is read is in memory always, where nothing has to be waited for.
    pub(super) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// The file.
    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether the file has become shorter than the disk.
    pub(super) fn has_shrunk(&self) -> bool {
        let shorter = |metadata: std::fs::Metadata| metadata.len() < self.size;
        !self.is_device() && self.file.metadata().is_ok_and(shorter)
    }

    fn is_written(&self) -> bool {
        !self.access.read_only && !self.access.snapshot
    }

    fn error(&self, fault: ImageFault) -> ImageError {
        ImageError { path: self.path.clone(), access: self.access, fault }
    }
}

fn open(path: &Path, access: Access) -> Result<Image, ImageFault> {
    let write = !access.read_only && !access.snapshot;
    let is_device = std::fs::metadata(path).is_ok_and(|file| file.file_type().is_block_device());
    // Without O_NONBLOCK, opening a FIFO would wait for its writer. A block device that is mounted, or
    // used by the host otherwise, can't be opened with O_EXCL (open(2)).
    let exclusive = if write && is_device { libc::O_EXCL } else { 0 };
    let mut options = OpenOptions::new();
    options.read(true).write(write).custom_flags(libc::O_NONBLOCK | exclusive);
    let file = options.open(path).map_err(|source| opening(path, source, write))?;
    let metadata = file.metadata().map_err(ImageFault::Open)?;
    let kind = metadata.file_type();
    let (identity, size) = if kind.is_block_device() {
        (Identity::Device(metadata.rdev()), end(&file).map_err(ImageFault::Open)?)
    } else if kind.is_file() {
        (Identity::File(metadata.dev(), metadata.ino()), metadata.len())
    } else if kind.is_dir() {
        return Err(ImageFault::Directory);
    } else {
        return Err(ImageFault::Special);
    };
    if size == 0 {
        return Err(ImageFault::Empty);
    }
    check_format(&file, size)?;
    set_flags(&file, access.direct)?;
    let topology = topology::of(&file, &metadata, access.direct);
    if !size.is_multiple_of(u64::from(topology.block)) {
        return Err(ImageFault::Size { size, block: topology.block });
    }
    // A device's node is in memory, what is behind it isn't.
    let in_memory = kind.is_file() && topology::is_in_memory(&file);
    Ok(Image { path: path.to_owned(), file, access, identity, size, topology, in_memory })
}

/// Why a file can't be opened.
fn opening(path: &Path, source: io::Error, write: bool) -> ImageFault {
    match (source.kind(), source.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => ImageFault::Missing,
        (io::ErrorKind::PermissionDenied, _) if write && is_readable(path) => {
            ImageFault::NotWritable
        }
        (io::ErrorKind::PermissionDenied, _) => ImageFault::Permission,
        (io::ErrorKind::ReadOnlyFilesystem, _) => ImageFault::NotWritable,
        (io::ErrorKind::IsADirectory, _) => ImageFault::Directory,
        (_, Some(libc::EBUSY)) => ImageFault::Busy,
        _ => ImageFault::Open(source),
    }
}

/// Has the file accessed as a disk is.
fn set_flags(file: &File, direct: bool) -> Result<(), ImageFault> {
    // O_NONBLOCK, with which it was opened, would have io_uring fail what has to wait.
    let flags = if direct { libc::O_DIRECT } else { 0 };
    // SAFETY: F_SETFL takes no pointer.
    let set =
        |flags: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } == 0;
    // When a sector was read is nobody's interest; only the file's owner may say so (open(2)).
    if set(flags | libc::O_NOATIME) || set(flags) {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(if direct { ImageFault::Direct(error) } else { ImageFault::Open(error) })
}

fn is_readable(path: &Path) -> bool {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).is_ok()
}

/// The size of a block device in bytes.
fn end(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// Checks that its bytes are those of a disk.
fn check_format(file: &File, size: u64) -> Result<(), ImageFault> {
    let mut start = [0; START_SIZE];
    let wanted = usize::try_from(size).unwrap_or(usize::MAX).min(START_SIZE);
    let start = start.get_mut(..wanted).unwrap_or_default();
    file.read_exact_at(start, 0).map_err(ImageFault::Read)?;
    match Format::of(start) {
        Format::DiskImage(kind) => return Err(ImageFault::Format(kind)),
        // Others have magic numbers of so few bytes that a disk can begin with them.
        Format::Compressed(by @ (Compressor::Xz | Compressor::Zstd | Compressor::Lz4)) => {
            return Err(ImageFault::Compressed(by));
        }
        Format::Compressed(Compressor::Gzip) if start.get(2) == Some(&8) => {
            return Err(ImageFault::Compressed(Compressor::Gzip));
        }
        _ => (),
    }
    // A VHD image of fixed size is a raw one with a footer.
    let mut footer = [0; 512];
    if let Some(at) = size.checked_sub(SECTOR) {
        file.read_exact_at(&mut footer, at).map_err(ImageFault::Read)?;
    }
    if footer.starts_with(b"conectix") {
        return Err(ImageFault::Format(DiskImage::Vhd));
    }
    Ok(())
}
