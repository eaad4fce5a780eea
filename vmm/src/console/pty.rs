//! A console on a pseudo-terminal.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use crate::error::Error;

/// How often it is looked whether a client has come, where the host can't tell.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A pseudo-terminal: the guest's side of it, the master.
///
/// While no client has the other side open, the master is hung up, and nothing tells when one opens
/// it but inotify, or looking.
pub(super) struct Pty {
    master: Arc<File>,
    arrivals: Arrivals,
}

/// What tells that a client may have come.
enum Arrivals {
    /// inotify: every open of the terminal.
    Opens(File),
    /// A timer, while there is no client.
    Timer(TimerFd),
}

impl Pty {
    /// A new raw pseudo-terminal, and the path of what clients open.
    ///
    /// # Errors
    ///
    /// The host has no more of them, or no descriptors.
    pub(super) fn open() -> Result<(Self, String), Error> {
        let failed = |e: io::Error| {
            Error::new(format!("--console pty: the host gives no pseudo-terminal: {e}"))
                .help("sysctl kernel.pty.max; mount | grep devpts")
        };
        let (master, path) = allocate().map_err(failed)?;
        let arrivals = match watch_opens(&path) {
            Ok(opens) => Arrivals::Opens(opens),
            // The first look starts it.
            Err(_) => Arrivals::Timer(TimerFd::new().map_err(|e| failed(e.into()))?),
        };
        Ok((Self { master: Arc::new(master), arrivals }, path))
    }

    /// The client that has come, if one has: the master, to talk to it.
    pub(super) fn accept(&mut self) -> Option<Arc<File>> {
        if let Arrivals::Opens(opens) = &mut self.arrivals {
            // Whatever has happened; it is non-blocking.
            let _ = opens.read(&mut [0; 4096]);
        }
        let is_hung_up = is_hung_up(&self.master);
        if let Arrivals::Timer(timer) = &mut self.arrivals {
            // Either way, its last event is forgotten.
            let _ = if is_hung_up { look(timer) } else { timer.clear() };
        }
        if is_hung_up {
            return None;
        }
        // A client before may have left it otherwise.
        let _ = make_raw(&self.master);
        Some(self.master.clone())
    }
}

impl AsRawFd for Pty {
    /// The descriptor that is readable when a client may have come.
    fn as_raw_fd(&self) -> RawFd {
        match &self.arrivals {
            Arrivals::Opens(opens) => opens.as_raw_fd(),
            Arrivals::Timer(timer) => timer.as_raw_fd(),
        }
    }
}

/// The master of a new pseudo-terminal, raw and hung up, and the path of its other side (pts(4)).
fn allocate() -> io::Result<(File, String)> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    let master = options.read(true).write(true).custom_flags(flags).open("/dev/ptmx")?;
    let (mut number, unlocked): (libc::c_uint, libc::c_int) = (0, 0);
    // SAFETY: each of these reads or writes one int, or takes flags (ioctl_tty(2)).
    let peer = unsafe {
        let fd = master.as_raw_fd();
        if libc::ioctl(fd, libc::TIOCGPTN, &raw mut number) < 0
            || libc::ioctl(fd, libc::TIOCSPTLCK, &raw const unlocked) < 0
        {
            return Err(io::Error::last_os_error());
        }
        libc::ioctl(fd, libc::TIOCGPTPEER, flags | libc::O_RDWR)
    };
    if peer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else has it. Once it has been closed, the master says
    // that it is hung up.
    drop(unsafe { OwnedFd::from_raw_fd(peer) });
    make_raw(&master)?;
    Ok((master, format!("/dev/pts/{number}")))
}

/// Makes the terminal raw: what is typed and printed goes through as it is. A master's attributes are
/// those of the other side.
fn make_raw(master: &File) -> io::Result<()> {
    let mut attributes = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr fills the structure, or fails; only then are the others called.
    let result = unsafe {
        if libc::tcgetattr(master.as_raw_fd(), attributes.as_mut_ptr()) == 0 {
            libc::cfmakeraw(attributes.as_mut_ptr());
            libc::tcsetattr(master.as_raw_fd(), libc::TCSANOW, attributes.as_ptr())
        } else {
            -1
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether nobody has the other side open.
fn is_hung_up(master: &File) -> bool {
    let mut poll = libc::pollfd { fd: master.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: `poll` is one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & libc::POLLHUP != 0
}

/// An inotify descriptor that is readable when the file has been opened.
fn watch_opens(path: &str) -> io::Result<File> {
    let path = CString::new(path)?;
    // SAFETY: inotify_init1 takes no pointers.
    let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and nobody else has it.
    let opens = unsafe { File::from_raw_fd(fd) };
    // SAFETY: the path is a C string.
    if unsafe { libc::inotify_add_watch(fd, path.as_ptr(), libc::IN_OPEN) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(opens)
}

/// Has the timer of [`Arrivals::Timer`] run.
fn look(timer: &mut TimerFd) -> vmm_sys_util::errno::Result<()> {
    timer.reset(LOOK_INTERVAL, Some(LOOK_INTERVAL))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn client(path: &str) -> File {
        File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
    }

    #[test]
    fn clients_are_told_of_whichever_way_the_host_has() {
        let (mut pty, path) = Pty::open().unwrap();
        assert!(matches!(pty.arrivals, Arrivals::Opens(_)));
        for with_timer in [false, true] {
            if with_timer {
                pty.arrivals = Arrivals::Timer(TimerFd::new().unwrap());
            }
            assert!(pty.accept().is_none());
            let client = client(&path);
            let mut poll = libc::pollfd { fd: pty.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: `poll` is one valid pollfd.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
            assert!(pty.accept().is_some());
            drop(client);
            assert!(pty.accept().is_none());
        }
    }

    #[test]
    fn bytes_go_through_as_they_are() {
        let (mut pty, path) = Pty::open().unwrap();
        let mut client = client(&path);
        let master = pty.accept().unwrap();
        let all = *b"\x03\x04\r\n\x11\x13\x7f\xff";
        (&*master).write_all(&all).unwrap();
        let mut got = [0; 8];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, all);
        client.write_all(&all).unwrap();
        (&*master).read_exact(&mut got).unwrap();
        assert_eq!(got, all);
        // And nothing comes back.
        assert!((&*master).read(&mut got).is_err());
    }
}
