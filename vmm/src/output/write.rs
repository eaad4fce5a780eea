//! Writing to a standard descriptor without blocking on its reader.

use devices::{poll, sync};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;
use std::time::Duration;

/// As much as a pipe that takes anything takes at once (pipe(7), "`PIPE_BUF`").
const PIPE_BUF: usize = 4096;

/// The multiplexer of pseudo-terminals: opening it makes a new one (pts(4)).
const PTMX: (libc::c_uint, libc::c_uint) = (5, 2);

/// How to write. What a descriptor refers to is usually shared with other processes (a shell and
/// what it started), so `O_NONBLOCK` must not be set on it.
#[derive(Debug)]
pub(super) enum WriteMode {
    /// A file or a device, writes to which don't block.
    Direct,
    /// A pipe or a terminal, opened a second time for strait alone, non-blocking.
    Reopened(File),
    /// A socket: each call says that it must not block.
    Socket,
    /// A pipe or a terminal that this process may not open (another user's): asked each time whether
    /// it takes so many bytes.
    Polled(usize),
}

/// Held between the question and the write of [`WriteMode::Polled`]: standard output and error may be the
/// same pipe.
static POLLING: Mutex<()> = Mutex::new(());

impl WriteMode {
    /// That for an open descriptor.
    pub(super) fn of(fd: RawFd) -> Self {
        let mut status = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: fstat fills the structure it is given, or fails.
        if unsafe { libc::fstat(fd, status.as_mut_ptr()) } != 0 {
            return Self::Direct;
        }
        // SAFETY: fstat succeeded, so the structure is filled.
        let status = unsafe { status.assume_init() };
        let ptmx = (libc::major(status.st_rdev), libc::minor(status.st_rdev)) == PTMX;
        match status.st_mode & libc::S_IFMT {
            libc::S_IFSOCK => Self::Socket,
            libc::S_IFIFO => Self::open(fd).unwrap_or(Self::Polled(PIPE_BUF)),
            // SAFETY: isatty takes any descriptor number.
            libc::S_IFCHR if unsafe { libc::isatty(fd) } == 1 => {
                let own = if ptmx { None } else { Self::open(fd) };
                // Whatever a terminal says it takes may be one byte.
                own.unwrap_or(Self::Polled(1))
            }
            _ => Self::Direct,
        }
    }

    fn open(fd: RawFd) -> Option<Self> {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        options.open(format!("/proc/self/fd/{fd}")).ok().map(Self::Reopened)
    }

    /// The descriptor by which to wait until more can be written.
    pub(super) fn descriptor(&self, fd: RawFd) -> RawFd {
        match self {
            Self::Reopened(file) => file.as_raw_fd(),
            _ => fd,
        }
    }

    /// Writes some of these bytes. `WouldBlock`: not now.
    pub(super) fn write(&self, fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match self {
                Self::Direct => borrow(fd).write(bytes),
                Self::Reopened(file) => (&*file).write(bytes),
                Self::Socket => send(fd, bytes),
                Self::Polled(most) => write_polled(fd, bytes.get(..*most).unwrap_or(bytes)),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Ok(0) if !bytes.is_empty() => return Err(io::ErrorKind::WriteZero.into()),
                other => return other,
            }
        }
    }
}

fn borrow(fd: RawFd) -> ManuallyDrop<File> {
    // SAFETY: a standard descriptor is open from the beginning to the end; it is never closed
    // through this File.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}

fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is valid for reads of its length.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn write_polled(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let _polling = sync::lock(&POLLING);
    if !wait(fd, Duration::ZERO) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    borrow(fd).write(bytes)
}

/// Waits at most for so long until a descriptor takes bytes, or fails to; a signal ends that.
pub fn wait(fd: RawFd, longest: Duration) -> bool {
    poll::wait(&mut [poll::writable(fd)], Some(longest)).is_ok_and(|ready| ready > 0)
}
