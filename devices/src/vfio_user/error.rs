//! What can go wrong with a server before a guest has its device.

use boot::help::Help;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::REPLY_TIMEOUT;
use super::client::{CallError, Cause, Failure};
use super::message::Command;
use super::version::{OURS, Version};
use crate::vfio::remedy;
use crate::vfio::uapi::IoctlError;

/// A device of another process that can't be had.
#[derive(Debug, thiserror::Error)]
pub enum VfioUserError {
    /// There is no connection to be had.
    #[error("no server can be reached at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The path names another kind of file.
    #[error("{} is no socket", path.display())]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// What listens there doesn't speak the protocol.
    #[error("{} is no vfio-user server: {why}", path.display())]
    NoServer {
        /// The socket.
        path: PathBuf,
        /// What it did instead.
        why: String,
    },
    /// It doesn't answer.
    #[error("the server at {} doesn't answer within {} s", path.display(), REPLY_TIMEOUT.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// It wasn't waited for any longer, since strait is to end.
    #[error("strait was told to end while it asked the server at {}", path.display())]
    Stopped {
        /// The socket.
        path: PathBuf,
    },
    /// It is a stranger's.
    #[error("the server at {} is another user's: process {process} of user {user}", path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Whose.
        user: u32,
        /// Who began to listen there.
        process: i32,
    },
    /// Anyone could put a socket of their own there.
    #[error("{} may be anyone's: all users can write to {}", path.display(), directory.display())]
    OpenDirectory {
        /// The socket.
        path: PathBuf,
        /// Where on its way.
        directory: PathBuf,
    },
    /// A stranger could put a socket of its own there.
    #[error("{} may be another's: {} belongs to user {user}", path.display(), directory.display())]
    StrangeDirectory {
        /// The socket.
        path: PathBuf,
        /// Where on its way.
        directory: PathBuf,
        /// Whose it is.
        user: u32,
    },
    /// It closed the connection while it was being asked.
    #[error("the server at {} closed the connection", path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// It speaks another version.
    #[error("the server at {} speaks vfio-user {version}, and strait {OURS}", path.display())]
    Version {
        /// The socket.
        path: PathBuf,
        /// What it speaks.
        version: Version,
    },
    /// Its device is no PCI function.
    #[error("the server at {} offers no PCI device", path.display())]
    NotPci {
        /// The socket.
        path: PathBuf,
    },
    /// It refused a request.
    #[error("the server at {} refused a request", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Which.
        #[source]
        source: IoctlError,
    },
    /// This process can't listen to it.
    #[error("strait can't listen to the server at {}", path.display())]
    Host {
        /// The socket.
        path: PathBuf,
        /// What the kernel refused.
        #[source]
        source: io::Error,
    },
}

impl VfioUserError {
    /// Why there is no connection.
    #[cold]
    pub(super) fn connecting(path: &Path, source: io::Error) -> Self {
        let is_socket = || path.metadata().map_or(true, |meta| meta.file_type().is_socket());
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::ConnectionRefused && !is_socket() {
            return Self::NoSocket { path };
        }
        Self::Connect { path, source }
    }

    /// Why the first questions weren't answered.
    #[cold]
    pub(super) fn asking(path: &Path, command: Command, error: CallError) -> Self {
        let path = path.to_owned();
        match error {
            CallError::Refused(_) => Self::Refused { path, source: refusal(command, error) },
            CallError::Over(failure) => Self::over(path, failure),
        }
    }

    fn over(path: PathBuf, failure: Failure) -> Self {
        match failure.cause {
            Cause::Silent => Self::Silent { path },
            Cause::Closed => Self::Closed { path },
            Cause::Over => Self::Stopped { path },
            Cause::Kernel => {
                Self::Host { path, source: io::Error::other(failure.why.as_ref().to_owned()) }
            }
            Cause::Nonsense => Self::NoServer { path, why: failure.why.as_ref().to_owned() },
        }
    }
}

impl Help for VfioUserError {
    #[cold]
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::Connect { path, source } => return connecting(path, source),
            Self::NoSocket { .. } => {
                "--vfio-user takes the path of the socket on which the server listens".to_owned()
            }
            Self::NoServer { path, .. } => format!(
                "--vfio-user takes the socket of a vfio-user server: ss -xlp src {} names who \
                 listens there",
                path.display()
            ),
            Self::Silent { .. } => {
                "a server mostly serves one client at a time: end the other, or the server if it \
                 hangs, and start it again"
                    .to_owned()
            }
            Self::Stopped { .. } => return None,
            Self::Stranger { path, user, .. } => format!(
                "if it is the server that you mean: --vfio-user {},peer={user}",
                path.display()
            ),
            Self::OpenDirectory { path, directory } => format!(
                "chmod o-w {}; or take it as it is: --vfio-user {},peer=any",
                directory.display(),
                path.display()
            ),
            Self::StrangeDirectory { path, user, .. } => format!(
                "if it is a user that you trust: --vfio-user {},peer={user}",
                path.display()
            ),
            Self::Closed { .. } | Self::Refused { .. } => {
                "the server's own output says why; start it again if it has ended".to_owned()
            }
            Self::Version { .. } => format!("a server for vfio-user {OURS}"),
            Self::NotPci { .. } => "a server whose device is a PCI function".to_owned(),
            Self::Host { .. } => remedy::OPEN_FILES.to_owned(),
        })
    }
}

fn connecting(path: &Path, source: &io::Error) -> Option<String> {
    let shown = path.display();
    Some(match source.kind() {
        io::ErrorKind::NotFound => {
            format!("start the server first, with {shown} as its socket")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("its server has ended: rm {shown}, and start the server again")
        }
        io::ErrorKind::PermissionDenied => format!(
            "run strait as the user who owns the socket (ls -l {shown}), or let this one have it: \
             sudo setfacl -m u:$USER:rw {shown}"
        ),
        io::ErrorKind::WouldBlock => {
            "the server is busy with other clients: it needs a socket for each".to_owned()
        }
        io::ErrorKind::InvalidInput => "give the server a shorter path".to_owned(),
        _ => return None,
    })
}

/// A request that wasn't answered, in VFIO's terms.
pub(super) fn refusal(command: Command, error: CallError) -> IoctlError {
    let source = match error {
        CallError::Refused(errno) => io::Error::from_raw_os_error(errno),
        CallError::Over(failure) => io::Error::other(failure.why.as_ref().to_owned()),
    };
    IoctlError { request: command.name(), source }
}
