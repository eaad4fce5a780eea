//! The socket: bytes and descriptors both ways, never waiting longer than is allowed.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::budget::Wait;
use super::fds::{FdCloser, ReceivedFd};
use super::message::MOST_FDS;

/// The size of as many descriptors as may come with a message, in bytes.
#[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
const FDS_SIZE: u32 = (MOST_FDS * size_of::<RawFd>()) as u32;

/// Why bytes didn't come through.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The other side is gone.
    #[error("the server closed the connection")]
    Closed,
    /// Nothing came through for as long as was allowed.
    #[error("the server neither reads nor writes")]
    Late,
    /// More descriptors came than were said to be taken.
    #[error("the server sent more than {MOST_FDS} descriptors at once")]
    Descriptors,
    /// Descriptors came for which this process has no room.
    #[error("strait is out of descriptors for what the server sent (ulimit -n)")]
    Exhausted,
    /// The kernel refused.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET) => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// A connection to a server; no call on it blocks by itself.
///
/// Closed where nobody waits: descriptors that the server sent and nobody took are closed with it.
#[derive(Debug)]
pub(super) struct Socket(ReceivedFd);

impl ScmSocket for Socket {
    fn socket_fd(&self) -> RawFd {
        self.as_raw_fd()
    }
}

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
        Ok(Self(ReceivedFd::new(fd, &FdCloser::default())))
    }

    /// A connection that somebody else made.
    #[cfg(test)]
    pub(super) fn over(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(ReceivedFd::new(stream.into(), &FdCloser::default())))
    }

    /// A socket that the server has made, if it is one as this is.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub(super) fn received(file: ReceivedFd) -> io::Result<Self> {
        for (option, expected) in
            [(libc::SO_DOMAIN, libc::AF_UNIX), (libc::SO_TYPE, libc::SOCK_STREAM)]
        {
            if int_option(file.as_raw_fd(), option)? != expected {
                return Err(io::Error::other("it is another kind of socket"));
            }
        }
        Ok(Self(file))
    }

    /// Sends all of this, the descriptors with the first byte.
    pub(super) fn send(
        &self,
        bytes: &[u8],
        mut fds: &[RawFd],
        wait: &mut Wait<'_>,
    ) -> Result<(), WireError> {
        let mut left = bytes;
        while !left.is_empty() {
            match self.send_some(left, fds) {
                Ok(0) => return Err(WireError::Closed),
                Ok(sent) => {
                    left = left.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(e) => self.retry(e, libc::POLLOUT, wait)?,
            }
        }
        Ok(())
    }

    fn send_some(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
        if !fds.is_empty() {
            let sent = self.send_with_fds(&[bytes], fds);
            return sent.map_err(|error| io::Error::from_raw_os_error(error.errno()));
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the buffer is as long as said.
        let sent =
            unsafe { libc::send(self.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Fills the buffer, and adds the descriptors that come along to `files`.
    pub(super) fn receive(
        &self,
        buffer: &mut [u8],
        files: &mut Vec<ReceivedFd>,
        bin: &FdCloser,
        wait: &mut Wait<'_>,
    ) -> Result<(), WireError> {
        let mut at = 0;
        while let Some(left) = buffer.get_mut(at..).filter(|left| !left.is_empty()) {
            match self.receive_some(left, files, bin) {
                Ok((0, _)) => return Err(WireError::Closed),
                Ok((_, true)) if files.len() < MOST_FDS => return Err(WireError::Exhausted),
                Ok((_, true)) => return Err(WireError::Descriptors),
                Ok((received, _)) => at = at.saturating_add(received),
                Err(e) => self.retry(e, libc::POLLIN, wait)?,
            }
            if files.len() > MOST_FDS {
                return Err(WireError::Descriptors);
            }
        }
        Ok(())
    }

    /// Receives what is there; the number of bytes, and whether descriptors were left out.
    ///
    /// (vmm-sys-util's call closes descriptors itself when there are too many, which can take as
    /// long as the server likes.)
    fn receive_some(
        &self,
        buffer: &mut [u8],
        files: &mut Vec<ReceivedFd>,
        bin: &FdCloser,
    ) -> io::Result<(usize, bool)> {
        // Of u64, for the alignment of a cmsghdr.
        let mut control = [0u64; 8 + MOST_FDS];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all zeros are a msghdr; musl's has private fields.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: computes a number; less than the array's size.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(FDS_SIZE) } as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the message names a buffer that may hold any bytes, and an array, with their sizes.
        let received = unsafe { libc::recvmsg(self.as_raw_fd(), &raw mut message, flags) };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel has filled the array as the message says: each header is within, and
        // its data are descriptors that were just made for us.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while let Some(found) = header.as_ref() {
                if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                    #[allow(clippy::unnecessary_cast, reason = "another integer with musl")]
                    let size = (found.cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                    let fds = libc::CMSG_DATA(header).cast::<RawFd>();
                    files.extend((0..size / size_of::<RawFd>()).map(|index| {
                        let fd = fds.add(index).read_unaligned();
                        ReceivedFd::new(OwnedFd::from_raw_fd(fd), bin)
                    }));
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
        }
        Ok((received, message.msg_flags & libc::MSG_CTRUNC != 0))
    }

    /// Ends the connection for both sides: whoever waits on it is woken.
    pub(super) fn shut_down(&self) {
        // SAFETY: takes numbers. What can go wrong is that it is closed already.
        unsafe { libc::shutdown(self.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Waits until a call that would have blocked can be made again.
    fn retry(
        &self,
        error: io::Error,
        events: libc::c_short,
        wait: &mut Wait<'_>,
    ) -> Result<(), WireError> {
        match error.raw_os_error() {
            Some(libc::EINTR) => return Ok(()),
            Some(libc::EAGAIN) => {}
            _ => return Err(error.into()),
        }
        let step = wait.next().ok_or(WireError::Late)?;
        let started = Instant::now();
        let milliseconds = i32::try_from(step.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events, revents: 0 };
        // SAFETY: one structure, as the count says.
        if unsafe { libc::poll(&raw mut poll, 1, milliseconds) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error.into());
            }
        }
        wait.waited(started.elapsed());
        Ok(())
    }
}

/// An option of a socket that is an integer.
fn int_option(fd: RawFd, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: there is room for as many bytes as `size` says.
    let returned = unsafe {
        let place = (&raw mut value).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, option, place, &raw mut size)
    };
    if returned == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
