//! What can go wrong with a backend.

use std::error::Error;
use std::fmt;
use std::io;

use boot::help::Help;
use vhost::vhost_user::Error as ProtocolError;

use super::REPLY_TIMEOUT;
use crate::peer::PeerError;
use crate::vfio::remedy;

/// Why a backend can't be used, or no longer.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no connection to be had.
    Connect(io::Error),
    /// It is a program that has ended, and can't be started again.
    Restart(io::Error),
    /// It may be a user's who isn't accepted.
    Peer(PeerError),
    /// It didn't answer this request in time.
    TimedOut(&'static str),
    /// It wasn't waited for any longer, since strait is to end.
    Stopped,
    /// It closed the connection at this request.
    Closed(&'static str),
    /// It is a program that was started, and ended like this.
    Ended(String),
    /// It refused this request.
    Refused(&'static str),
    /// What it sent for this request violates the protocol.
    Protocol(&'static str, String),
    /// It sent what nobody asked for.
    Unasked,
    /// Its device is from before virtio 1.0.
    Legacy,
    /// It has this number of queues.
    Queues(u64),
    /// It tells no configuration.
    NoConfig,
    /// It isn't the one that it was before.
    Different(&'static str),
    /// RAM has no file that it could map.
    NoRamFile,
    /// The kernel refused something.
    Host(io::Error),
}

impl Failure {
    /// That of a request that the `vhost` crate made; `ended` if the connection was shut down meanwhile.
    pub(super) fn of(request: &'static str, error: vhost::Error, ended: bool) -> Self {
        if ended {
            return if crate::stop::is_requested() {
                Self::Stopped
            } else {
                Self::TimedOut(request)
            };
        }
        match error {
            vhost::Error::VhostUserProtocol(error) => match error {
                // Nothing, or less than a message, is what the crate reads at the end.
                ProtocolError::Disconnected
                | ProtocolError::PartialMessage
                | ProtocolError::SocketBroken(_) => Self::Closed(request),
                ProtocolError::BackendInternalError => Self::Refused(request),
                ProtocolError::SocketError(error) => Self::Host(error),
                error => Self::Protocol(request, error.to_string()),
            },
            error => Self::Protocol(request, error.to_string()),
        }
    }

    /// The connection is of use in spite of it.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// As it is said of a backend whose name comes before.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "can't be reached: {error}"),
            Self::Restart(error) => write!(f, "isn't started again: {error}"),
            Self::Peer(_) => f.write_str("may be another user's"),
            Self::TimedOut(request) => {
                write!(f, "doesn't answer {request} within {} s", REPLY_TIMEOUT.as_secs())
            }
            Self::Stopped => f.write_str("wasn't waited for: strait was told to end"),
            Self::Closed("") => f.write_str("closed the connection"),
            Self::Closed(request) => write!(f, "closed the connection at {request}"),
            Self::Ended(how) => f.write_str(how),
            Self::Refused(request) => write!(f, "refused {request}"),
            Self::Protocol(request, why) => {
                write!(f, "doesn't keep to the protocol: its answer to {request} is: {why}")
            }
            Self::Unasked => {
                f.write_str("doesn't keep to the protocol: it sent what nobody asked for")
            }
            Self::Legacy => f.write_str("offers no device of virtio 1.0 or later"),
            Self::Queues(number) => write!(f, "has {number} queues"),
            Self::NoConfig => f.write_str("tells no configuration of its device"),
            Self::Different(what) => write!(f, "came back with other {what} than before"),
            Self::NoRamFile => f.write_str("can't map the guest's RAM: it isn't shared"),
            Self::Host(error) => write!(f, "can't be used: {error}"),
        }
    }
}

/// A backend that can't be connected to, or whose device can't be used.
#[derive(Debug)]
pub struct VhostUserError {
    /// Its socket, or its program.
    pub(super) name: String,
    /// The option that asks for it.
    pub(super) option: String,
    pub(super) failure: Failure,
}

impl fmt::Display for VhostUserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, failure, .. } = self;
        match failure {
            Failure::Peer(error) => f.write_str(&error.describe(name.as_ref())),
            failure => write!(f, "the vhost-user backend {name} {failure}"),
        }
    }
}

impl Error for VhostUserError {}

impl Help for VhostUserError {
    #[cold]
    fn help(&self) -> Option<String> {
        let Self { name, option, failure } = self;
        Some(match failure {
            Failure::Peer(error) => return error.help(option),
            Failure::Connect(error) => return connect_help(name, error),
            Failure::TimedOut("GET_CONFIG") => {
                "its configuration may have another size: config-size=BYTES".to_owned()
            }
            Failure::TimedOut(_) => {
                "a backend serves one frontend at a time: end the other, or the backend if it hangs, \
                 and start it again"
                    .to_owned()
            }
            Failure::Queues(number) => format!("queues={number}"),
            Failure::NoConfig => "for what has none: config-size=0".to_owned(),
            Failure::Legacy => "a backend with VIRTIO_F_VERSION_1".to_owned(),
            Failure::Host(error) => return remedy::host_refused(error),
            Failure::Protocol(..) | Failure::Unasked => {
                format!("a vhost-user backend: ss -xlp src {name} names who listens there")
            }
            Failure::Closed(_) | Failure::Refused(_) | Failure::Ended(_) => {
                "the backend's own output says why; start it again if it has ended".to_owned()
            }
            Failure::Restart(_)
            | Failure::Stopped
            | Failure::Different(_)
            | Failure::NoRamFile => return None,
        })
    }
}

#[cold]
fn connect_help(path: &str, error: &io::Error) -> Option<String> {
    Some(match error.kind() {
        io::ErrorKind::NotFound => format!("start the backend first, with {path} as its socket"),
        io::ErrorKind::ConnectionRefused => {
            format!("its backend has ended: rm {path}, and start the backend again")
        }
        io::ErrorKind::PermissionDenied => format!(
            "run strait as the user who owns the socket (ls -l {path}), or let this one have it: sudo \
             setfacl -m u:$USER:rw {path}"
        ),
        io::ErrorKind::WouldBlock => {
            "the backend is busy with other frontends: it needs a socket for each".to_owned()
        }
        io::ErrorKind::InvalidInput => "give the backend a shorter path".to_owned(),
        _ => return None,
    })
}
