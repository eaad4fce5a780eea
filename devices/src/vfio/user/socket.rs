//! The socket: bytes and descriptors both ways, never waiting beyond a deadline.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::message::MOST_FDS;

/// Why bytes didn't come through.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The other side is gone.
    #[error("the server closed the connection")]
    Closed,
    /// The deadline has passed.
    #[error("the server neither reads nor writes")]
    Late,
    /// More descriptors came than were said to be taken.
    #[error("the server sent more than {MOST_FDS} descriptors at once")]
    Descriptors,
    /// The kernel refused.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET) => Self::Closed,
            Some(libc::ENOBUFS) => Self::Descriptors,
            _ => Self::Io(error),
        }
    }
}

/// A connection to a server; no call on it blocks by itself.
#[derive(Debug)]
pub(super) struct Socket(UnixStream);

impl Socket {
    /// Connects to the server at this path.
    ///
    /// `EAGAIN` if as many clients are waiting already as the server lets wait. (The standard
    /// library would wait with them.)
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let mut address = libc::sockaddr_un {
            sun_family: libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default(),
            sun_path: [0; 108],
        };
        let bytes = path.as_os_str().as_bytes();
        // The last byte stays 0.
        if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
            let why = "a socket's path has at most 107 bytes";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = libc::c_char::from_ne_bytes([*from]);
        }
        // SAFETY: takes numbers only.
        let fd = unsafe {
            let flags = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            libc::socket(libc::AF_UNIX, flags, 0)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made for us; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
        // SAFETY: `address` is a whole sockaddr_un of this size.
        if unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(UnixStream::from(fd)))
    }

    /// A connection that somebody else made.
    #[cfg(test)]
    pub(super) fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    /// Sends all of this, the descriptors with the first byte.
    pub(super) fn send(
        &self,
        bytes: &[u8],
        mut fds: &[RawFd],
        deadline: Instant,
    ) -> Result<(), WireError> {
        let mut left = bytes;
        while !left.is_empty() {
            match self.0.send_with_fds(&[left], fds) {
                Ok(0) => return Err(WireError::Closed),
                Ok(sent) => {
                    left = left.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(e) => self.retry(e, libc::POLLOUT, deadline)?,
            }
        }
        Ok(())
    }

    /// Fills the buffer, and adds the descriptors that come along to `files`.
    pub(super) fn receive(
        &self,
        buffer: &mut [u8],
        files: &mut Vec<File>,
        deadline: Instant,
    ) -> Result<(), WireError> {
        let mut at = 0;
        while let Some(left) = buffer.get_mut(at..).filter(|left| !left.is_empty()) {
            let mut fds = [0; MOST_FDS];
            let mut part =
                [libc::iovec { iov_base: left.as_mut_ptr().cast(), iov_len: left.len() }];
            // SAFETY: the vector names the buffer `left`, which may hold any bytes.
            match unsafe { self.0.recv_with_fds(&mut part, &mut fds) } {
                Ok((0, _)) => return Err(WireError::Closed),
                Ok((received, descriptors)) => {
                    // SAFETY: the kernel has just made these descriptors for us.
                    let received_files =
                        fds.iter().take(descriptors).map(|fd| unsafe { File::from_raw_fd(*fd) });
                    files.extend(received_files);
                    at = at.saturating_add(received);
                }
                Err(e) => self.retry(e, libc::POLLIN, deadline)?,
            }
            if files.len() > MOST_FDS {
                return Err(WireError::Descriptors);
            }
        }
        Ok(())
    }

    /// Ends the connection for both sides: whoever waits on it is woken.
    pub(super) fn shut_down(&self) {
        // It is closed already, or there is nothing to be done.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// Waits until a call that would have blocked can be made again.
    fn retry(
        &self,
        error: vmm_sys_util::errno::Error,
        events: libc::c_short,
        deadline: Instant,
    ) -> Result<(), WireError> {
        match error.errno() {
            libc::EINTR => return Ok(()),
            libc::EAGAIN => {}
            errno => return Err(io::Error::from_raw_os_error(errno).into()),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(WireError::Late);
        }
        let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events, revents: 0 };
        // SAFETY: one structure, as the count says.
        if unsafe { libc::poll(&raw mut poll, 1, milliseconds) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error.into());
            }
        }
        Ok(())
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
