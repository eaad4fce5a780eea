//! A connection: messages and descriptors both ways, never waiting longer than is allowed.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::budget::Wait;
use super::error::{Failure, FailureKind};
use super::fds::{FdCloser, ReceivedFd};
use super::message::{Header, MAX_FDS, Payload};
use crate::peer::{self, socket_option};
use crate::poll;
use crate::sync::lock;

/// The size of as many descriptors as may come with a message, in bytes.
#[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
const FDS_SIZE: u32 = (MAX_FDS * size_of::<RawFd>()) as u32;

/// A connection to a server, on which several threads send one message after the other.
///
/// No call on its socket blocks. It is closed in a thread: descriptors that the server sent and nobody
/// received are closed with it.
#[derive(Debug)]
pub(super) struct Connection {
    socket: ReceivedFd,
    /// A message is being sent.
    sending: Mutex<bool>,
    sent: Condvar,
}

impl ScmSocket for Connection {
    fn socket_fd(&self) -> RawFd {
        self.as_raw_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Connection {
    fn new(socket: ReceivedFd) -> Self {
        Self { socket, sending: Mutex::default(), sent: Condvar::new() }
    }

    /// What closes its socket.
    pub(super) fn closer(&self) -> &FdCloser {
        self.socket.closer()
    }

    /// Connects to the server at this path, without waiting.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(ReceivedFd::new(peer::connect(path)?, &FdCloser::default())))
    }

    /// A connection that somebody else made.
    #[cfg(test)]
    pub(super) fn over(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::new(ReceivedFd::new(stream.into(), &FdCloser::default())))
    }

    /// A connection that the server has made.
    ///
    /// # Errors
    ///
    /// The descriptor is no UNIX stream socket.
    pub(super) fn received(fd: ReceivedFd) -> io::Result<Self> {
        for (option, expected) in
            [(libc::SO_DOMAIN, libc::AF_UNIX), (libc::SO_TYPE, libc::SOCK_STREAM)]
        {
            // SAFETY: both options are an int.
            if unsafe { socket_option::<libc::c_int>(&fd, option)? } != expected {
                return Err(io::Error::other("it is another kind of socket"));
            }
        }
        Ok(Self::new(fd))
    }

    /// Sends a message, its descriptors with the first byte.
    pub(super) fn send(
        &self,
        header: Header,
        payload: &Payload,
        fds: &[RawFd],
        wait: &mut Wait<'_>,
    ) -> Result<(), Failure> {
        let head = header.to_bytes().ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        let bytes = [head.as_slice(), &payload.0].concat();
        {
            // Another thread may be stuck.
            let mut sending = lock(&self.sending);
            while *sending {
                let waited =
                    wait.step(stuck, |longest| self.sent.wait_timeout(sending, longest))?;
                sending = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            *sending = true;
        }
        let result = self.send_all(&bytes, fds, wait);
        *lock(&self.sending) = false;
        self.sent.notify_one();
        result
    }

    fn send_all(
        &self,
        mut bytes: &[u8],
        mut fds: &[RawFd],
        wait: &mut Wait<'_>,
    ) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match self.send_some(bytes, fds) {
                Ok(0) => return Err(Failure::closed()),
                Ok(sent) => {
                    bytes = bytes.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(error) => self.wait_for(libc::POLLOUT, error, wait)?,
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

    /// Fills the buffer, and adds the descriptors that come along to `files`, of which at most
    /// [`MAX_FDS`] may come.
    pub(super) fn receive(
        &self,
        mut buffer: &mut [u8],
        files: &mut Vec<ReceivedFd>,
        closer: &FdCloser,
        wait: &mut Wait<'_>,
    ) -> Result<(), Failure> {
        while !buffer.is_empty() {
            match self.receive_some(buffer, files, closer) {
                Ok((0, _)) => return Err(Failure::closed()),
                Ok((_, true)) if files.len() < MAX_FDS => {
                    let why = "strait is out of descriptors for what the server sent (ulimit -n)";
                    return Err(Failure::new(FailureKind::Host, why));
                }
                Ok((_, true)) => return Err(too_many_fds()),
                Ok(_) if files.len() > MAX_FDS => return Err(too_many_fds()),
                Ok((received, false)) => buffer = buffer.get_mut(received..).unwrap_or_default(),
                Err(error) => self.wait_for(libc::POLLIN, error, wait)?,
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
        closer: &FdCloser,
    ) -> io::Result<(usize, bool)> {
        // Of u64, for the alignment of a cmsghdr.
        let mut control = [0u64; 8 + MAX_FDS];
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
                        ReceivedFd::new(OwnedFd::from_raw_fd(fd), closer)
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

    /// Waits until a call that had this error for its result can be made again.
    fn wait_for(
        &self,
        events: libc::c_short,
        error: io::Error,
        wait: &mut Wait<'_>,
    ) -> Result<(), Failure> {
        match error.raw_os_error() {
            Some(libc::EINTR) => return Ok(()),
            Some(libc::EAGAIN) => {}
            _ => return Err(error.into()),
        }
        wait.step(stuck, |longest| {
            let mut entries = [libc::pollfd { fd: self.as_raw_fd(), events, revents: 0 }];
            // One that has failed counts as a wait.
            let _ = poll::wait(&mut entries, Some(longest));
        })
    }
}

fn stuck() -> String {
    "the server neither reads nor writes".to_owned()
}

fn too_many_fds() -> Failure {
    Failure::protocol(format_args!("more than {MAX_FDS} descriptors at once"))
}
