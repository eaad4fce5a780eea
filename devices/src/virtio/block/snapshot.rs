//! What a guest writes to a disk that is kept as it is: it goes to a file without a name, and is gone
//! with the run.

use std::env;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::request::SECTOR;

/// The sectors that differ from the image, and what is in them.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Sparse, as large as the disk.
    file: File,
    /// A bit for each sector: it is in `file`. Untouched pages of it take no memory.
    written: Vec<AtomicU64>,
}

/// Successive sectors that are in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Its bytes.
    pub(super) len: u64,
    /// They are in the snapshot's file.
    pub(super) written: bool,
}

impl Snapshot {
    /// For a disk of `size` bytes: in `$TMPDIR`, or /var/tmp, by a file without a name; in memory if
    /// there is no such directory, or its file system has no files without names.
    ///
    /// # Errors
    ///
    /// There isn't memory enough to note which sectors were written.
    #[cold]
    pub(super) fn new(size: u64) -> io::Result<Self> {
        let file = nameless().or_else(|_| memory())?;
        // Nothing of it is allocated before it is written.
        file.set_len(size)?;
        let words =
            usize::try_from(size / SECTOR / 64 + 1).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, written: zeroed(words)? })
    }

    /// The file that has the written sectors at their places.
    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The first of `len` bytes at `offset` that are in the same place. Both are multiples of a
    /// sector, and `len` isn't 0.
    pub(super) fn run(&self, offset: u64, len: u64) -> Run {
        let first = offset / SECTOR;
        let last = first + len / SECTOR;
        let written = self.is_written(first);
        let mut end = first + 1;
        while end < last && self.is_written(end) == written {
            end += 1;
        }
        Run { len: (end - first) * SECTOR, written }
    }

    /// `len` bytes at `offset` have been written to the file.
    pub(super) fn note(&self, offset: u64, len: u64) {
        for sector in offset / SECTOR..(offset + len) / SECTOR {
            if let Some(word) = self.word(sector) {
                // Whoever sees the bit sees what was written before.
                word.fetch_or(1 << (sector % 64), Ordering::Release);
            }
        }
    }

    fn is_written(&self, sector: u64) -> bool {
        let word = self.word(sector).map_or(0, |word| word.load(Ordering::Acquire));
        word & 1 << (sector % 64) != 0
    }

    fn word(&self, sector: u64) -> Option<&AtomicU64> {
        self.written.get(usize::try_from(sector / 64).ok()?)
    }
}

/// So many zeroes, which take no memory yet.
fn zeroed(words: usize) -> io::Result<Vec<AtomicU64>> {
    use std::alloc::{Layout, alloc_zeroed};
    let layout = Layout::array::<AtomicU64>(words).map_err(|_| io::ErrorKind::OutOfMemory)?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout has a size.
    let start = unsafe { alloc_zeroed(layout) }.cast::<AtomicU64>();
    if start.is_null() {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    // SAFETY: the global allocator gave it with the layout of so many, and zero is a valid AtomicU64.
    Ok(unsafe { Vec::from_raw_parts(start, words, words) })
}

/// A file without a name.
fn nameless() -> io::Result<File> {
    let directory = env::var_os("TMPDIR").filter(|path| !path.is_empty());
    let directory = directory.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    options.open(directory)
}

/// A file in memory.
fn memory() -> io::Result<File> {
    let name = CString::from(c"strait-snapshot");
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_the_place_changes() {
        let snapshot = Snapshot::new(1 << 20).unwrap();
        let run = |offset, len| {
            let Run { len, written } = snapshot.run(offset, len);
            (len, written)
        };
        assert_eq!(run(0, 1 << 20), (1 << 20, false));
        snapshot.note(63 * 512, 1024);
        assert_eq!(run(0, 1 << 20), (63 * 512, false));
        assert_eq!(run(63 * 512, 4096), (1024, true));
        assert_eq!(run(64 * 512, 512), (512, true));
        assert_eq!(run(65 * 512, (1 << 20) - 65 * 512), ((1 << 20) - 65 * 512, false));
        assert_eq!(run((1 << 20) - 512, 512), (512, false));
    }

    #[test]
    fn a_large_disk_takes_no_memory_before_it_is_written() {
        // The largest file of ext4 with blocks of 4 KiB.
        if let Ok(snapshot) = Snapshot::new(16 << 40) {
            snapshot.note((16 << 40) - 512, 512);
            assert_eq!(snapshot.run((16 << 40) - 1024, 1024), Run { len: 512, written: false });
        }
    }
}
