//! How clients come to the control socket: through the supervisor, which tells users apart. The process with the
//! guest, in a namespace of users in which there are none, can't, and has no listening socket.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use devices::peer;
use devices::ratelimit::LogLimit;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::error::Error;
use crate::unix_listener::UnixSocket;

/// The user who may do everything.
const ROOT: u32 = 0;

/// How many clients are taken at a time.
const AT_ONCE: usize = 4;

/// The supervisor's side: who accepts clients, and hands them on.
pub struct Acceptor {
    socket: UnixSocket,
    /// The user who may be a client, with root.
    owner: u32,
    to: UnixDatagram,
    log: LogLimit,
    /// The host was short of something when the last client came, who still waits.
    is_short: bool,
}

/// The other side: clients that were accepted.
pub struct Accepted(UnixDatagram);

/// Listens at this path; both sides of it.
///
/// # Errors
///
/// Something else is there, the directory can't be written to, or the host has no more descriptors.
#[cold]
pub fn listen(path: &Path) -> Result<(Acceptor, Accepted), Error> {
    let socket = UnixSocket::listen("--control", path)?;
    // SAFETY: takes nothing, and can't fail.
    let owner = unsafe { libc::geteuid() };
    let (to, from) =
        pair().map_err(|e| Error::new(format!("--control unix:{}: {e}", path.display())))?;
    Ok((
        Acceptor { socket, owner, to, log: LogLimit::new("control"), is_short: false },
        Accepted(from),
    ))
}

/// Clients that never come.
#[cfg(feature = "fuzzing")]
pub fn unreachable() -> io::Result<Accepted> {
    pair().map(|(_, from)| Accepted(from))
}

fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (to, from) = UnixDatagram::pair()?;
    to.set_nonblocking(true)?;
    from.set_nonblocking(true)?;
    Ok((to, from))
}

impl AsRawFd for Acceptor {
    /// What is readable once a client comes.
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Acceptor {
    /// Hands clients on that have come, if they are of root or of the user who started strait.
    #[cold]
    pub fn serve(&mut self) {
        self.is_short = false;
        for _ in 0..AT_ONCE {
            match self.socket.accept() {
                Ok(Some(client)) => self.hand_on(&client),
                Ok(None) => return,
                Err(e) => {
                    self.log
                        .warn(format_args!("a client can't be accepted, it is tried again: {e}"));
                    self.is_short = true;
                    return;
                }
            }
        }
    }

    /// Whether to serve again after a while, and not when a client comes, as one is there all the time.
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// Has it do something on a host that is short of what an accept takes.
    #[cfg(test)]
    pub fn without_descriptors(&mut self, act: impl FnOnce(&mut Self)) {
        let socket = std::mem::replace(&mut self.socket, UnixSocket::deaf());
        act(self);
        self.socket = socket;
    }

    fn hand_on(&self, client: &File) {
        // SAFETY: the option is a ucred, that of the process that has connected.
        let peer = unsafe { peer::socket_option::<libc::ucred>(client, libc::SO_PEERCRED) };
        let user = peer.map(|peer| peer.uid);
        if !user.as_ref().is_ok_and(|user| is_allowed(*user, self.owner)) {
            let whose = user.map_or_else(|e| e.to_string(), |user| format!("of user {user}"));
            self.log.warn(format_args!("a client is turned away: {whose}"));
            return;
        }
        // One that can't be handed on finds the connection closed.
        if let Err(e) = self.to.send_with_fd(&[0_u8][..], client.as_raw_fd()) {
            self.log.warn(format_args!("a client can't be served: {e}"));
        }
    }
}

fn is_allowed(user: u32, owner: u32) -> bool {
    user == owner || user == ROOT
}

impl Accepted {
    /// The next client, open non-blocking, if there is one.
    pub fn next(&self) -> Option<File> {
        self.0.recv_with_fd(&mut [0]).ok()?.1
    }
}

impl AsRawFd for Accepted {
    /// What is readable once there is a client.
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn clients_of_the_owner_are_handed_on() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("control");
        let (mut acceptor, accepted) = listen(&path).unwrap();
        acceptor.serve();
        assert!(accepted.next().is_none());
        let mut client = UnixStream::connect(&path).unwrap();
        acceptor.serve();
        accepted.next().unwrap().write_all(b"x").unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(accepted.next().is_none());
        // SAFETY: takes nothing, and can't fail.
        let own = unsafe { libc::geteuid() };
        assert!(is_allowed(own, own) && is_allowed(ROOT, own) && !is_allowed(7, 8));
        if own != ROOT {
            acceptor.owner = own + 1;
            let mut client = UnixStream::connect(&path).unwrap();
            acceptor.serve();
            assert!(accepted.next().is_none());
            assert_eq!(client.read(&mut byte).unwrap(), 0);
        }
        // Nobody is there any more who could serve them, or too many wait.
        let mut clients: Vec<_> = (0..64)
            .filter_map(|_| {
                let client = peer::connect(&path).ok();
                acceptor.serve();
                client.map(UnixStream::from)
            })
            .collect();
        drop(accepted);
        clients.extend(peer::connect(&path).ok().map(UnixStream::from));
        acceptor.serve();
    }
}
