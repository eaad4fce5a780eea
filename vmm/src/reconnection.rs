//! Connections to backends that were lost, made again by the process that may open sockets: the one with
//! the guest can't any more, and asks for them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use devices::peer::{self, Peer};
use devices::ratelimit::LogLimit;
use devices::vhost_user;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// How long an answer is waited for. A connection that comes later is the next one's.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who connects to one backend, and who asks for it: a datagram asks, of whatever content, and one with a
/// descriptor answers, or an empty one where that failed.
pub struct Connector {
    socket: UnixDatagram,
    path: PathBuf,
    peer: Peer,
    log: LogLimit,
}

/// The side that asks.
pub struct Asker {
    socket: UnixDatagram,
    /// It has asked, and has no answer yet.
    has_asked: bool,
}

/// Both sides for the backend at `path`, which may be this peer's.
///
/// # Errors
///
/// The host has no more descriptors.
#[cold]
pub fn pair(path: PathBuf, peer: Peer) -> io::Result<(Connector, Asker)> {
    let (ours, theirs) = UnixDatagram::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_read_timeout(Some(PATIENCE))?;
    theirs.set_write_timeout(Some(PATIENCE))?;
    let log = LogLimit::named(path.display().to_string());
    let asker = Asker { socket: theirs, has_asked: false };
    Ok((Connector { socket: ours, path, peer, log }, asker))
}

impl AsRawFd for Connector {
    /// What is readable once somebody asks.
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Connector {
    /// Answers one who has asked, if somebody has.
    #[cold]
    pub fn serve(&self) {
        if self.socket.recv(&mut [0]).is_err() {
            return;
        }
        let connected = peer::connect(&self.path).ok().and_then(|socket| {
            let checked = self.peer.check(&self.path, &socket);
            let refused = |error: &peer::PeerError| error.describe(&self.path);
            checked.inspect_err(|e| self.log.warn(format_args!("{}", refused(e)))).ok()?;
            let socket = UnixStream::from(socket);
            // Its new owner can't change that.
            socket.set_nonblocking(false).ok()?;
            Some(socket)
        });
        let send = |socket: &UnixStream| self.socket.send_with_fd(&[0_u8][..], socket.as_raw_fd());
        if connected.is_none_or(|socket| send(&socket).is_err()) {
            // Nobody waits for it any more if this fails.
            let _ = self.socket.send(&[]);
        }
    }
}

impl Asker {
    /// The answer, if it comes in time.
    fn answer(&mut self) -> io::Result<UnixStream> {
        let (_, socket) = self.socket.recv_with_fd(&mut [0])?;
        self.has_asked = false;
        let socket = socket.ok_or(io::ErrorKind::ConnectionRefused)?;
        Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
    }
}

impl vhost_user::Connector for Asker {
    fn connect(&mut self) -> io::Result<UnixStream> {
        if self.has_asked {
            // To ask once more would leave each answer to the next, and a second connection at the backend.
            let late = self.answer();
            if self.has_asked || late.is_ok() {
                return late;
            }
        }
        self.socket.send(&[0])?;
        self.has_asked = true;
        self.answer()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use devices::vhost_user::Connector as _;
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn who_asks_is_connected_once_somebody_listens() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        let (connector, mut asker) = pair(path.clone(), Peer::Own).unwrap();
        // Nobody has asked.
        connector.serve();
        let mut ask = || {
            let serving = thread::scope(|scope| {
                let asking = scope.spawn(|| asker.connect());
                while !asking.is_finished() {
                    connector.serve();
                }
                asking.join().unwrap()
            });
            serving.is_ok()
        };
        assert!(!ask());
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(ask());
        // One that others could have put there.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(directory.as_path(), open).unwrap();
        assert!(!ask());
    }
    #[test]
    fn an_answer_that_comes_late_is_the_next_one_s() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        let (connector, mut asker) = pair(path.clone(), Peer::Own).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(asker.connect().is_err());
        connector.serve();
        let _stream = asker.connect().unwrap();
        connector.serve();
        assert!(listener.accept().is_ok());
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // It is asked anew where the late answer was a refusal.
        drop(listener);
        assert!(asker.connect().is_err());
        connector.serve();
        std::fs::remove_file(&path).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        thread::scope(|scope| {
            let asking = scope.spawn(|| asker.connect());
            while !asking.is_finished() {
                connector.serve();
            }
            asking.join().unwrap().unwrap();
        });
    }
}
