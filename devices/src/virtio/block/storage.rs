//! What a request does to the file, waited for by the thread that asks.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::buffers::Buffers;
use super::image::Image;
use super::request::Segment;
use super::snapshot::Snapshot;

/// Bytes of zeroes written at a time where a file system can't make a hole.
const ZEROES: usize = 64 << 10;

/// The most bytes that an access with other buffers than the guest's has at a time.
const BOUNCE: u64 = 1 << 20;

/// Whether data go to the guest or come from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// A disk's image, with what the guest wrote if that is elsewhere.
#[derive(Debug)]
pub(super) struct Storage {
    image: Arc<Image>,
    snapshot: Option<Snapshot>,
}

/// Why an access to the file failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StorageError {
    #[error("{0}")]
    Host(#[from] io::Error),
    #[error("the file has become shorter")]
    Shrunk,
}

impl Storage {
    /// Of an image.
    ///
    /// # Errors
    ///
    /// A snapshot was asked for, and the host has no place for one.
    pub(super) fn new(image: Arc<Image>) -> io::Result<Self> {
        let wanted = image.access().snapshot;
        let snapshot = wanted.then(|| Snapshot::new(image.size())).transpose()?;
        Ok(Self { image, snapshot })
    }

    /// The image.
    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// Whether all data are in the image itself.
    pub(super) fn is_plain(&self) -> bool {
        self.snapshot.is_none()
    }

    /// Reads at `offset` into `buffers`, which are done then.
    pub(super) fn read(&self, offset: u64, buffers: &mut Buffers) -> Result<(), StorageError> {
        let Some(snapshot) = &self.snapshot else {
            return self.all(Direction::Read, self.image.fd(), offset, buffers, 0);
        };
        let (mut offset, mut part) = (offset, Buffers::default());
        while buffers.left() > 0 {
            let run = snapshot.run(offset, buffers.left());
            buffers.copy_to(&mut part);
            part.truncate(run.len);
            let fd = if run.written { snapshot.fd() } else { self.image.fd() };
            self.all(Direction::Read, fd, offset, &mut part, 0)?;
            buffers.advance(usize::try_from(run.len).unwrap_or(usize::MAX));
            offset = offset.saturating_add(run.len);
        }
        Ok(())
    }

    /// Writes `buffers`, which are done then, at `offset`; durably if it is written `through`.
    pub(super) fn write(
        &self,
        offset: u64,
        buffers: &mut Buffers,
        through: bool,
    ) -> Result<(), StorageError> {
        match &self.snapshot {
            None => {
                let flags = if through { libc::RWF_DSYNC } else { 0 };
                self.all(Direction::Write, self.image.fd(), offset, buffers, flags)
            }
            Some(snapshot) => {
                let len = buffers.left();
                self.all(Direction::Write, snapshot.fd(), offset, buffers, 0)?;
                snapshot.note(offset, len);
                Ok(())
            }
        }
    }

    /// Makes what was written durable. A snapshot's needn't be.
    pub(super) fn flush(&self) -> Result<(), StorageError> {
        if self.snapshot.is_some() {
            return Ok(());
        }
        self.check_size()?;
        // SAFETY: fdatasync takes no pointer.
        if unsafe { libc::fdatasync(self.image.fd()) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(())
    }

    /// Checks that the file is as long as the disk.
    pub(super) fn check_size(&self) -> Result<(), StorageError> {
        if self.image.has_shrunk() { Err(StorageError::Shrunk) } else { Ok(()) }
    }

    /// Gives up what is stored there, if the host can; it reads as zeroes, or as it was, then.
    pub(super) fn discard(&self, segment: Segment) -> Result<(), StorageError> {
        if self.snapshot.is_some() {
            return self.zero(segment);
        }
        match self.punch(self.image.fd(), segment) {
            Err(e) if is_unsupported(&e) => Ok(()),
            result => result.map_err(StorageError::Host),
        }
    }

    /// Makes what is there zeroes.
    pub(super) fn zero(&self, segment: Segment) -> Result<(), StorageError> {
        let fd = self.snapshot.as_ref().map_or(self.image.fd(), Snapshot::fd);
        let cleared = if segment.unmap || self.snapshot.is_some() {
            self.punch(fd, segment)
        } else {
            fallocate(fd, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, segment)
        };
        match cleared {
            Err(e) if is_unsupported(&e) => self.write_zeroes(fd, segment)?,
            result => result?,
        }
        if let Some(snapshot) = &self.snapshot {
            snapshot.note(segment.offset, segment.len);
        }
        Ok(())
    }

    /// Makes a hole, or the like on a device.
    fn punch(&self, fd: RawFd, segment: Segment) -> io::Result<()> {
        fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, segment)
    }

    fn write_zeroes(&self, fd: RawFd, segment: Segment) -> Result<(), StorageError> {
        let mut zeroes = Aligned::new(ZEROES);
        let (mut offset, mut left) = (segment.offset, segment.len);
        while left > 0 {
            let bytes = usize::try_from(left).unwrap_or(ZEROES).min(ZEROES);
            let part = zeroes.part(bytes);
            let count = transfer(Direction::Write, fd, offset, &[part], 0)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            offset = offset.saturating_add(count as u64);
            left = left.saturating_sub(count as u64);
        }
        Ok(())
    }

    /// Transfers all of `buffers`.
    fn all(
        &self,
        direction: Direction,
        fd: RawFd,
        offset: u64,
        buffers: &mut Buffers,
        flags: libc::c_int,
    ) -> Result<(), StorageError> {
        let mut offset = offset;
        while buffers.left() > 0 {
            let count = match transfer(direction, fd, offset, buffers.parts(), flags) {
                Ok(count) => count,
                // A guest's buffers can be anywhere, those for O_DIRECT not.
                Err(e) if self.is_misaligned(&e, buffers) => {
                    return self.bounce(direction, fd, offset, buffers, flags);
                }
                Err(e) => return Err(e.into()),
            };
            if count == 0 {
                return Err(StorageError::Shrunk);
            }
            buffers.advance(count);
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    /// Whether an access failed for where the buffers are.
    pub(super) fn is_misaligned(&self, error: &io::Error, buffers: &Buffers) -> bool {
        let alignment = usize::try_from(self.image.topology().memory).unwrap_or(usize::MAX);
        self.image.access().direct
            && error.raw_os_error() == Some(libc::EINVAL)
            && !buffers.are_aligned(alignment.max(512))
    }

    /// Transfers all of `buffers` by way of memory that is aligned.
    fn bounce(
        &self,
        direction: Direction,
        fd: RawFd,
        offset: u64,
        buffers: &mut Buffers,
        flags: libc::c_int,
    ) -> Result<(), StorageError> {
        let size = usize::try_from(buffers.left().min(BOUNCE)).unwrap_or(0);
        let mut between = Aligned::new(size);
        let mut offset = offset;
        while buffers.left() > 0 {
            let bytes = usize::try_from(buffers.left()).unwrap_or(size).min(size);
            let mut ahead = Buffers::default();
            buffers.copy_to(&mut ahead);
            if direction == Direction::Write {
                // SAFETY: guest RAM is mapped while a request of its is served.
                unsafe { ahead.read(between.bytes(bytes)) };
            }
            let count = transfer(direction, fd, offset, &[between.part(bytes)], flags)?;
            if count == 0 {
                return Err(StorageError::Shrunk);
            }
            if direction == Direction::Read {
                // SAFETY: as above.
                unsafe { ahead.write(between.bytes(count)) };
            }
            buffers.advance(count);
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }
}

/// Memory for `O_DIRECT`.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// So many zeroes, at a multiple of 4096.
    fn new(size: usize) -> Self {
        let memory = vec![0; size.saturating_add(4096)];
        let start = memory.as_ptr().align_offset(4096).min(4096);
        Self { memory, start }
    }

    /// Its first `len` bytes.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        let end = self.start.saturating_add(len);
        self.memory.get_mut(self.start..end).unwrap_or_default()
    }

    /// The same for a system call.
    fn part(&mut self, len: usize) -> libc::iovec {
        let bytes = self.bytes(len);
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
    }
}

/// Transfers at `offset` of a file; the number of bytes may be less than wanted.
pub(super) fn transfer(
    direction: Direction,
    fd: RawFd,
    offset: u64,
    parts: &[libc::iovec],
    flags: libc::c_int,
) -> io::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (one, several) = match direction {
        Direction::Read => (libc::SYS_pread64, libc::SYS_preadv2),
        Direction::Write => (libc::SYS_pwrite64, libc::SYS_pwritev2),
    };
    loop {
        // The C library's functions would be points of cancellation. The parts are memory that is mapped,
        // of which no reference is held: guest RAM, or a buffer that only this call accesses. An offset
        // is one argument on 64-bit machines, and what is behind that of `preadv2` isn't looked at
        // (`pos_from_hilo` of Linux' fs/read_write.c).
        let done = match parts {
            // One part takes the kernel less work by the calls for one.
            [part] if flags == 0 => {
                // SAFETY: see above.
                unsafe { libc::syscall(one, fd, part.iov_base, part.iov_len, offset) }
            }
            _ => {
                // SAFETY: see above.
                unsafe { libc::syscall(several, fd, parts.as_ptr(), parts.len(), offset, 0, flags) }
            }
        };
        match usize::try_from(done) {
            Ok(done) => return Ok(done),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => (),
                e => return Err(e),
            },
        }
    }
}

fn fallocate(fd: RawFd, mode: libc::c_int, segment: Segment) -> io::Result<()> {
    let number =
        |value| i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (offset, len) = (number(segment.offset)?, number(segment.len)?);
    if len == 0 {
        return Ok(());
    }
    // SAFETY: fallocate takes no pointer.
    if unsafe { libc::fallocate64(fd, mode, offset, len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the host can't do this at all with such a file.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY | libc::EINVAL)
    )
}
