//! What can go wrong with a server.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use boot::help::Help;

use super::REPLY_TIMEOUT;
use super::message::Command;
use super::version::{SUPPORTED, Version};
use crate::peer::PeerError;
use crate::vfio::remedy;
use crate::vfio::uapi::IoctlError;

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The server closed it.
    Closed,
    /// The server didn't answer in time.
    TimedOut,
    /// The server violated the protocol.
    Protocol,
    /// The kernel refused something.
    Host,
    /// This side has closed it.
    Disconnected,
}

/// The end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) why: String,
}

impl Failure {
    pub(super) fn new(kind: FailureKind, why: impl Into<String>) -> Self {
        Self { kind, why: why.into() }
    }

    /// The server sent something that violates the protocol.
    pub(super) fn protocol(what: impl fmt::Display) -> Self {
        Self::new(FailureKind::Protocol, format!("the server sent {what}"))
    }

    pub(super) fn closed() -> Self {
        Self::new(FailureKind::Closed, "the server closed the connection")
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET) => Self::closed(),
            _ => Self::new(FailureKind::Host, error.to_string()),
        }
    }
}

/// Why a request had no success.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The server refused it, with this error number (`errno`).
    Refused(i32),
    /// The connection is over.
    Failed(Failure),
}

impl RequestError {
    /// The error as VFIO's ioctls have it.
    pub(super) fn of(self, command: Command) -> IoctlError {
        IoctlError { request: command.name, source: self.into() }
    }
}

impl From<RequestError> for io::Error {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Refused(errno) => Self::from_raw_os_error(errno),
            RequestError::Failed(failure) => Self::other(failure.why),
        }
    }
}

/// A server that can't be connected to, or whose device can't be used.
#[derive(Debug)]
pub struct VfioUserError {
    /// The socket.
    path: PathBuf,
    reason: Reason,
}

#[derive(Debug)]
pub(super) enum Reason {
    /// There is no connection to be had.
    Connect(io::Error),
    /// The path names another kind of file.
    NoSocket,
    /// What listens there violates the protocol.
    NoServer(String),
    /// It doesn't answer.
    TimedOut,
    /// It wasn't waited for any longer, since strait is to end.
    Stopped,
    /// It may be a user's who isn't accepted.
    Peer(PeerError),
    /// It closed the connection.
    Closed,
    /// It speaks another version.
    Version(Version),
    /// Its device is no PCI device.
    NotPci,
    /// It refused a request.
    Refused(IoctlError),
    /// The kernel refused something.
    Host(io::Error),
}

impl From<Failure> for Reason {
    fn from(Failure { kind, why }: Failure) -> Self {
        match kind {
            FailureKind::TimedOut => Self::TimedOut,
            FailureKind::Closed => Self::Closed,
            FailureKind::Disconnected => Self::Stopped,
            FailureKind::Host => Self::Host(io::Error::other(why)),
            FailureKind::Protocol => Self::NoServer(why),
        }
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl From<PeerError> for Reason {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::Host(error) => Self::Host(error),
            error => Self::Peer(error),
        }
    }
}

impl Reason {
    /// Why there is no connection to `path`.
    #[cold]
    pub(super) fn connecting(path: &Path, error: io::Error) -> Self {
        let is_socket = || path.metadata().map_or(true, |meta| meta.file_type().is_socket());
        if error.kind() == io::ErrorKind::ConnectionRefused && !is_socket() {
            return Self::NoSocket;
        }
        Self::Connect(error)
    }

    /// Why a request before the device is known had no success.
    #[cold]
    pub(super) fn requesting(command: Command, error: RequestError) -> Self {
        match error {
            RequestError::Refused(_) => Self::Refused(error.of(command)),
            RequestError::Failed(failure) => failure.into(),
        }
    }

    pub(super) fn at(self, path: &Path) -> VfioUserError {
        VfioUserError { path: path.to_owned(), reason: self }
    }
}

impl fmt::Display for VfioUserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.reason {
            Reason::Connect(_) => write!(f, "no server can be reached at {path}"),
            Reason::NoSocket => write!(f, "{path} is no socket"),
            Reason::NoServer(why) => write!(f, "{path} is no vfio-user server: {why}"),
            Reason::TimedOut => {
                let limit = REPLY_TIMEOUT.as_secs();
                write!(f, "the server at {path} doesn't answer within {limit} s")
            }
            Reason::Stopped => {
                write!(f, "strait was told to end while it asked the server at {path}")
            }
            Reason::Peer(error) => f.write_str(&error.describe(&self.path)),
            Reason::Closed => write!(f, "the server at {path} closed the connection"),
            Reason::Version(version) => {
                write!(f, "the server at {path} speaks vfio-user {version}, and strait {SUPPORTED}")
            }
            Reason::NotPci => write!(f, "the server at {path} offers no PCI device"),
            Reason::Refused(_) => write!(f, "the server at {path} refused a request"),
            Reason::Host(_) => write!(f, "strait can't listen to the server at {path}"),
        }
    }
}

impl Error for VfioUserError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.reason {
            Reason::Connect(error) | Reason::Host(error) => Some(error),
            Reason::Refused(error) => Some(error),
            _ => None,
        }
    }
}

impl Help for VfioUserError {
    #[cold]
    fn help(&self) -> Option<String> {
        let path = self.path.display();
        Some(match &self.reason {
            Reason::Stopped => return None,
            Reason::Connect(error) => return self.connect_help(error),
            Reason::NoSocket => {
                "--vfio-user takes the path of the socket on which the server listens".to_owned()
            }
            Reason::NoServer(_) => format!(
                "--vfio-user takes the socket of a vfio-user server: ss -xlp src {path} names who \
                 listens there"
            ),
            Reason::TimedOut => {
                "a server mostly serves one client at a time: end the other, or the server if it \
                 hangs, and start it again"
                    .to_owned()
            }
            Reason::Peer(error) => return error.help(&format!("--vfio-user {path}")),
            Reason::Closed | Reason::Refused(_) => {
                "the server's own output says why; start it again if it has ended".to_owned()
            }
            Reason::Version(_) => format!("a server for vfio-user {SUPPORTED}"),
            Reason::NotPci => "a server whose device is a PCI function".to_owned(),
            Reason::Host(error) => return remedy::host_refused(error),
        })
    }
}

impl VfioUserError {
    fn connect_help(&self, error: &io::Error) -> Option<String> {
        let path = self.path.display();
        Some(match error.kind() {
            io::ErrorKind::NotFound => {
                format!("start the server first, with {path} as its socket")
            }
            io::ErrorKind::ConnectionRefused => {
                format!("its server has ended: rm {path}, and start the server again")
            }
            io::ErrorKind::PermissionDenied => format!(
                "run strait as the user who owns the socket (ls -l {path}), or let this one have it: \
                 sudo setfacl -m u:$USER:rw {path}"
            ),
            io::ErrorKind::WouldBlock => {
                "the server is busy with other clients: it needs a socket for each".to_owned()
            }
            io::ErrorKind::InvalidInput => "give the server a shorter path".to_owned(),
            _ => return None,
        })
    }
}
