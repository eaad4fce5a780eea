//! The user whose server it is.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::connection::socket_option;
use super::error::Reason;

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
    pub(super) fn check(self, path: &Path, socket: &impl AsRawFd) -> Result<(), Reason> {
        if self == Self::Any {
            return Ok(());
        }
        // SAFETY: the option is a ucred, here that of the process that began to listen.
        let listener: libc::ucred = unsafe { socket_option(socket, libc::SO_PEERCRED)? };
        if !self.includes(listener.uid) {
            return Err(Reason::Stranger { user: listener.uid, process: listener.pid });
        }
        for directory in path.canonicalize()?.ancestors().skip(1) {
            let metadata = fs::metadata(directory)?;
            let (mode, user) = (metadata.mode(), metadata.uid());
            let directory = directory.to_owned();
            if !self.includes(user) {
                return Err(Reason::ForeignDirectory { directory, user });
            }
            if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
                return Err(Reason::OpenDirectory(directory));
            }
        }
        Ok(())
    }
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
            let error = Peer::Own.check(&path, &socket).unwrap_err().at(&path);
            let told = error.to_string();
            assert!(told.contains("all users can write to"), "{told}");
            let told = error.help().unwrap();
            assert!(told.contains(&format!("chmod o-w {}", at.display())), "{told}");
            Peer::Any.check(&path, &socket).unwrap();
            open(at, 0o755);
        }
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
