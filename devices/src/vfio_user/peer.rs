//! Whose server this is.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::VfioUserError;

/// Writable by others, and only for one's own files there (inode(7)).
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

const ROOT: u32 = 0;

/// Whose servers are taken.
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

impl Peer {
    fn includes(self, user: u32) -> bool {
        // SAFETY: takes nothing, and can't fail.
        let own = unsafe { libc::geteuid() };
        let told = match self {
            Self::Own => false,
            Self::User(told) => user == told,
            Self::Any => true,
        };
        told || user == ROOT || user == own
    }
}

/// Checks whose server is at the other end of `socket`, which was reached by `path`.
pub(super) fn check(path: &Path, socket: &impl AsRawFd, peer: Peer) -> Result<(), VfioUserError> {
    if peer == Peer::Any {
        return Ok(());
    }
    let host = |source| VfioUserError::Host { path: path.to_owned(), source };
    let credentials = credentials(socket).map_err(host)?;
    if !peer.includes(credentials.uid) {
        let (user, process) = (credentials.uid, credentials.pid);
        return Err(VfioUserError::Stranger { path: path.to_owned(), user, process });
    }
    check_directories(path, peer).map_err(host)?
}

/// Who began to listen (`SO_PEERCRED` of unix(7)).
fn credentials(socket: &impl AsRawFd) -> io::Result<libc::ucred> {
    let mut credentials = MaybeUninit::<libc::ucred>::uninit();
    let mut size = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: there is room for as many bytes as `size` says.
    let returned = unsafe {
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
        let place = credentials.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), level, option, place, &raw mut size)
    };
    if returned != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled it.
    Ok(unsafe { credentials.assume_init() })
}

/// Checks that no stranger could have put this socket in another's place: nobody else's directory is
/// on the way to it, and none in which others may rename.
fn check_directories(path: &Path, peer: Peer) -> io::Result<Result<(), VfioUserError>> {
    let path = path.canonicalize()?;
    for directory in path.ancestors().skip(1) {
        let about = fs::metadata(directory)?;
        let (mode, owner) = (about.mode(), about.uid());
        let at = || (path.clone(), directory.to_owned());
        if !peer.includes(owner) {
            let (path, directory) = at();
            return Ok(Err(VfioUserError::StrangeDirectory { path, directory, user: owner }));
        }
        if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
            let (path, directory) = at();
            return Ok(Err(VfioUserError::OpenDirectory { path, directory }));
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use boot::help::Help;
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
    fn strangers_are_taken_only_if_told() {
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
        check(&path, &socket, Peer::Own).unwrap();
        let open = |at: &Path, mode| fs::set_permissions(at, Permissions::from_mode(mode)).unwrap();
        open(&inner, 0o1777);
        check(&path, &socket, Peer::Own).unwrap();
        for at in [&inner, directory.as_path()] {
            open(at, 0o777);
            let error = check(&path, &socket, Peer::Own).unwrap_err();
            let told = error.to_string();
            assert!(told.contains("all users can write to"), "{told}");
            let told = error.help().unwrap();
            assert!(told.contains(&format!("chmod o-w {}", at.display())), "{told}");
            check(&path, &socket, Peer::Any).unwrap();
            open(at, 0o755);
        }
    }

    #[test]
    fn the_other_end_says_who_it_is() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(credentials(&one).unwrap().uid, own());
        assert!(credentials(&fs::File::open("/dev/null").unwrap()).is_err());
    }
}
