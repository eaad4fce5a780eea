//! Listening sockets of the file system, for those of the same user.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use crate::error::Error;

/// Who may connect: the owner (unix(7), "Pathname socket ownership and permissions").
const MODE: libc::mode_t = 0o600;

/// How many clients may wait to be accepted.
const BACKLOG: libc::c_int = 4;

/// A listening socket. Its file stays: who has it may reach no path any more, and the parent
/// [removes](remove_stale) it.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
}

impl UnixSocket {
    /// Listens at `path`, for this option. The file of a socket that nobody listens on is replaced.
    ///
    /// # Errors
    ///
    /// Something else is there, or the directory can't be written to.
    pub fn listen(option: &str, path: &Path) -> Result<Self, Error> {
        let failed = |why: String| Error::new(format!("{option} unix:{}: {why}", path.display()));
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(failed("there is a file that is no socket".into())
                    .help("unix:PATH with a name that is free"));
            }
            Ok(_) if !is_stale(path) => {
                return Err(failed("somebody listens there".into()).help(format!(
                    "unix:PATH with a name that is free; `ss -xlp src {}` shows who it is",
                    path.display()
                )));
            }
            Ok(_) => fs::remove_file(path)
                .map_err(|e| failed(format!("an old socket can't be replaced: {e}")))?,
            Err(_) => {}
        }
        let listener = bind(path).map_err(|e| {
            let help = "unix:PATH in a directory you can write to".to_owned();
            let is_short_of_memory = e.raw_os_error() == Some(libc::ENOMEM);
            failed(format!("no socket can be made: {e}"))
                .maybe_help((!is_short_of_memory).then_some(help))
        })?;
        Ok(Self { listener })
    }

    /// The client that wants to come, open non-blocking, if there still is one.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors or memory.
    pub fn accept(&self) -> io::Result<Option<File>> {
        let gone = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
        match self.listener.accept() {
            Ok((client, _)) => {
                client.set_nonblocking(true)?;
                Ok(Some(File::from(OwnedFd::from(client))))
            }
            Err(e) if gone.contains(&e.kind()) || e.kind() == io::ErrorKind::ConnectionAborted => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
impl UnixSocket {
    /// One that doesn't listen: each accept fails (EINVAL).
    pub fn deaf() -> Self {
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Self { listener: UnixListener::from(OwnedFd::from(socket)) }
    }
}

impl AsRawFd for UnixSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

/// Removes the file of a socket at this path that nobody listens on any more.
#[cold]
pub fn remove_stale(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
    if is_socket && is_stale(path) {
        let _ = fs::remove_file(path);
    }
}

/// Whether no socket is behind the file at this path. Asked with a socket of another type, which is
/// never connected: it is told of another type (EPROTOTYPE), or that there is none.
fn is_stale(path: &Path) -> bool {
    let connected = UnixDatagram::unbound().and_then(|probe| probe.connect(path));
    connected.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// A listening socket at this path, which has its permissions from the beginning: the file gets those
/// of the socket, as far as the umask goes.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let checked = |result: libc::c_int| match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers.
    let fd = checked(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: it was just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an address without a path is valid as all zeroes.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
    let path = path.as_os_str().as_bytes();
    // One remains for the zero.
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
    // SAFETY: the address is valid and as large as it is said to be; the others take no pointers.
    unsafe {
        checked(libc::fchmod(fd, MODE))?;
        checked(libc::bind(fd, (&raw const address).cast(), size))?;
        checked(libc::listen(fd, BACKLOG))?;
    }
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use super::*;

    fn scratch(test: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("strait-{test}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn only_the_owner_may_connect_and_the_file_can_be_removed_afterwards() {
        let directory = scratch("socket-mode");
        let path = directory.join("console");
        let socket = UnixSocket::listen("--console", &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(socket.accept().unwrap().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(socket.accept().unwrap().is_some());
        drop(socket);
        remove_stale(&path);
        assert!(fs::symlink_metadata(&path).is_err());
        fs::remove_dir(directory).unwrap();
    }

    #[test]
    fn an_old_socket_is_replaced_and_nothing_else() {
        let directory = scratch("socket-old");
        let path = directory.join("console");
        drop(UnixListener::bind(&path).unwrap());
        let socket = UnixSocket::listen("--console", &path).unwrap();
        // Somebody listens: who does isn't disturbed.
        let error = UnixSocket::listen("--console", &path).unwrap_err();
        assert!(error.message().ends_with("somebody listens there"), "{}", error.message());
        assert!(socket.accept().unwrap().is_none());
        // Nor is who listens harmed by what is cleaned up.
        remove_stale(&path);
        assert!(path.exists());
        // A file of somebody else's is left alone.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        let error = UnixSocket::listen("--console", &path).unwrap_err();
        assert!(error.message().ends_with("is no socket"), "{}", error.message());
        drop(socket);
        remove_stale(&path);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        remove_stale(&path);
        assert!(!path.exists());
        fs::remove_dir_all(directory).unwrap();
    }
}
