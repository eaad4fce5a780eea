//! The process at the other end of a UNIX socket: reaching it, and whose it is.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Writable by others, and only for one's own files there (inode(7)).
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

const ROOT: u32 = 0;

/// Whose servers are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peer {
    /// Those of root and of this process's own user.
    #[default]
    Own,
    /// Those of the user with this number, too.
    User(u32),
    /// Anyone's, wherever their sockets are.
    Any,
}

/// Why a server isn't accepted.
#[derive(Debug)]
pub enum PeerError {
    /// It is another user's process.
    Stranger {
        /// The user.
        user: u32,
        /// The process.
        process: i32,
    },
    /// All users can put a socket of their own there: this directory on its path is writable.
    OpenDirectory(PathBuf),
    /// Another user can put a socket of their own there, to whom a directory on its path belongs.
    ForeignDirectory {
        /// The directory.
        directory: PathBuf,
        /// The user.
        user: u32,
    },
    /// The kernel refused to tell.
    Host(io::Error),
}

impl From<io::Error> for PeerError {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl PeerError {
    /// What is wrong with the server at `path`.
    #[cold]
    pub fn describe(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Stranger { user, process } => {
                format!("the server at {path} is another user's: process {process} of user {user}")
            }
            Self::OpenDirectory(directory) => {
                let directory = directory.display();
                format!("{path} may be anyone's: all users can write to {directory}")
            }
            Self::ForeignDirectory { directory, user } => {
                let directory = directory.display();
                format!("{path} may be another's: {directory} belongs to user {user}")
            }
            Self::Host(error) => {
                format!("strait can't tell whose the server at {path} is: {error}")
            }
        }
    }

    /// What to do about it, if the option so far is `option`.
    #[cold]
    pub fn help(&self, option: &str) -> Option<String> {
        Some(match self {
            Self::Stranger { user, .. } => {
                format!("if it is the server that you mean: {option},peer={user}")
            }
            Self::OpenDirectory(directory) => {
                let directory = directory.display();
                format!("chmod o-w {directory}; or take it as it is: {option},peer=any")
            }
            Self::ForeignDirectory { user, .. } => {
                format!("if it is a user that you trust: {option},peer={user}")
            }
            Self::Host(_) => return None,
        })
    }
}

/// Connects to the UNIX stream socket at this path, without waiting; no call on it blocks, either.
///
/// `EAGAIN` if as many clients are waiting already as the server lets wait. (The standard library's
/// call would block.)
///
/// # Errors
///
/// Nobody listens there, or the path is too long.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
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
    Ok(fd)
}

/// An option of a socket (`SOL_SOCKET` of socket(7) and unix(7)).
///
/// # Safety
///
/// `T` must be the C type of this option.
///
/// # Errors
///
/// It is no socket.
pub unsafe fn socket_option<T>(socket: &impl AsRawFd, option: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut size = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: there is room for as many bytes as `size` says.
    let returned = unsafe {
        let (fd, place) = (socket.as_raw_fd(), value.as_mut_ptr().cast());
        libc::getsockopt(fd, libc::SOL_SOCKET, option, place, &raw mut size)
    };
    if returned != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled it with a value of this type, as the caller says.
    Ok(unsafe { value.assume_init() })
}

impl Peer {
    fn includes(self, user: u32) -> bool {
        // SAFETY: takes nothing, and can't fail.
        let own = unsafe { libc::geteuid() };
        let given = match self {
            Self::Own => false,
            Self::User(given) => user == given,
            Self::Any => true,
        };
        given || user == ROOT || user == own
    }

    /// Checks whose server is at the other end of `socket`, which was reached by `path`, and that no
    /// other user could have put this socket in another's place: no directory on the path belongs to
    /// one, or is one in which others may rename.
    ///
    /// # Errors
    ///
    /// It may be a user's who isn't accepted.
    pub fn check(self, path: &Path, socket: &impl AsRawFd) -> Result<(), PeerError> {
        if self == Self::Any {
            return Ok(());
        }
        // SAFETY: the option is a ucred, here that of the process that began to listen.
        let listener: libc::ucred = unsafe { socket_option(socket, libc::SO_PEERCRED)? };
        if !self.includes(listener.uid) {
            return Err(PeerError::Stranger { user: listener.uid, process: listener.pid });
        }
        for directory in directory(path)?.ancestors() {
            let metadata = fs::metadata(directory)?;
            let (mode, user) = (metadata.mode(), metadata.uid());
            let directory = directory.to_owned();
            if !self.includes(user) {
                return Err(PeerError::ForeignDirectory { directory, user });
            }
            if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
                return Err(PeerError::OpenDirectory(directory));
            }
        }
        Ok(())
    }
}

/// The directory of a socket, where the path leads. A server may have removed the socket when it took the
/// connection, as the `vhost` crate's do.
fn directory(path: &Path) -> io::Result<PathBuf> {
    let is_gone = || fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    let own = |path: &Path| match path.parent() {
        Some(directory) if directory != Path::new("") => directory.to_owned(),
        _ => PathBuf::from("."),
    };
    match path.canonicalize() {
        Ok(socket) => Ok(own(&socket)),
        Err(e) if e.kind() == io::ErrorKind::NotFound && is_gone() => own(path).canonicalize(),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn own() -> u32 {
        // SAFETY: takes nothing, and can't fail.
        unsafe { libc::geteuid() }
    }

    #[test]
    fn servers_of_other_users_are_accepted_only_if_given() {
        let stranger = own().wrapping_add(1).max(1);
        for (peer, expected) in [
            (Peer::Own, [true, true, false, false]),
            (Peer::User(stranger), [true, true, true, false]),
            (Peer::Any, [true; 4]),
        ] {
            let users = [ROOT, own(), stranger, stranger + 1];
            assert_eq!(users.map(|user| peer.includes(user)), expected, "{peer:?}");
        }
    }

    #[test]
    fn directories_that_others_may_write_are_refused() {
        let directory = TempDir::new().unwrap();
        let inner = directory.as_path().join("inner");
        fs::create_dir(&inner).unwrap();
        let path = inner.join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let socket = UnixStream::connect(&path).unwrap();
        Peer::Own.check(&path, &socket).unwrap();
        let open = |at: &Path, mode| fs::set_permissions(at, Permissions::from_mode(mode)).unwrap();
        open(&inner, 0o1777);
        Peer::Own.check(&path, &socket).unwrap();
        for at in [&inner, directory.as_path()] {
            open(at, 0o777);
            let error = Peer::Own.check(&path, &socket).unwrap_err();
            let told = error.describe(&path);
            assert!(told.contains("all users can write to"), "{told}");
            let told = error.help("--option").unwrap();
            assert!(told.contains(&format!("chmod o-w {}", at.display())), "{told}");
            Peer::Any.check(&path, &socket).unwrap();
            open(at, 0o755);
        }
    }

    #[test]
    fn a_server_may_remove_its_socket() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let socket = UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        Peer::Own.check(&path, &socket).unwrap();
        fs::set_permissions(directory.as_path(), Permissions::from_mode(0o777)).unwrap();
        let error = Peer::Own.check(&path, &socket).unwrap_err();
        assert!(matches!(error, PeerError::OpenDirectory(_)), "{error:?}");
        // Whose socket a link that leads nowhere led to is unknown.
        std::os::unix::fs::symlink("/no/such", &path).unwrap();
        assert!(matches!(Peer::Own.check(&path, &socket), Err(PeerError::Host(_))));
    }

    #[test]
    fn a_socket_has_the_credentials_of_its_peer() {
        // SAFETY: the option is a ucred.
        let peer = |socket: &dyn AsRawFd| unsafe {
            socket_option::<libc::ucred>(&socket.as_raw_fd(), libc::SO_PEERCRED)
        };
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(peer(&one).unwrap().uid, own());
        assert!(peer(&fs::File::open("/dev/null").unwrap()).is_err());
    }
}
