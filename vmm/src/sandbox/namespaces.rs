//! Namespaces: the process sees an empty root directory, and no IPC objects or host name of the host's
//! (namespaces(7)).
//!
//! Not among them: a namespace of PIDs, which a running process can't enter; and one of networks, which
//! takes longer to make than all the rest, while the process makes no sockets any more.

use std::ffi::CStr;
use std::io;
use std::ptr;
use std::thread;
use std::time::Duration;

/// What of the host is left behind.
const KINDS: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// How often namespaces are tried to be entered, a millisecond apart.
const ATTEMPTS: u32 = 50;

/// The size of the empty root: nothing can be put into it.
const EMPTY: &CStr = c"size=4k,nr_inodes=1,mode=0555";

/// Enters new namespaces. A privileged process may; any other one by a new namespace of users, which it
/// enters with them, and only while it has no other threads.
pub(super) fn enter(is_privileged: bool) -> io::Result<()> {
    let users = if is_privileged { 0 } else { libc::CLONE_NEWUSER };
    unshare(KINDS | users)?;
    empty_root()
}

/// Enters a new namespace of users in which there are none: this process is nobody it could become again,
/// and has no more power over anybody than they allow to all.
pub(super) fn leave_users() -> io::Result<()> {
    unshare(libc::CLONE_NEWUSER)
}

/// A thread that was waited for is gone for the kernel a moment later, and so long it refuses a namespace of
/// users.
fn unshare(kinds: libc::c_int) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        // SAFETY: takes a number.
        let unshared = checked(unsafe { libc::unshare(kinds) });
        if !unshared.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL)) {
            return unshared;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("a thread is at work"))
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the root an empty directory, in the new namespace of mounts only.
fn empty_root() -> io::Result<()> {
    let (root, tmpfs) = (c"/".as_ptr(), c"tmpfs".as_ptr());
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let (own, here) = (libc::MS_REC | libc::MS_PRIVATE, c".".as_ptr());
    // SAFETY: all of these are C strings or null pointers where there need be none (mount(2)).
    unsafe {
        // What is done here stays here.
        checked(libc::mount(ptr::null(), root, ptr::null(), own, ptr::null()))?;
        checked(libc::mount(tmpfs, root, tmpfs, flags, EMPTY.as_ptr().cast()))?;
        // What is mounted over the root is above it.
        checked(libc::chdir(c"/..".as_ptr()))?;
        if libc::syscall(libc::SYS_pivot_root, here, here) == 0 {
            // The old one lies on it now, and goes with all that is in it.
            checked(libc::umount2(here, libc::MNT_DETACH))?;
            checked(libc::chdir(root))
        } else {
            // Of a host that runs from its initramfs, which can't be moved.
            checked(libc::chroot(here))
        }
    }
}
