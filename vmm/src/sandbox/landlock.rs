//! Landlock: nothing of the file system can be opened, no TCP or UDP port bound or connected, and nothing outside
//! is reached by signals and Unix sockets (Documentation/userspace-api/landlock.rst). What is open stays so.
//!
//! The three system calls, made here: for rights that nothing is exempted from, the `landlock` crate would
//! add rules, their builders and ways to fall back.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;

/// The version of the kernel's Landlock, if it has one that is on: what it can forbid grew with it.
pub fn version() -> Option<u32> {
    let none = ptr::null::<Attributes>();
    // SAFETY: the null pointer and size 0 go with the flag, which asks for the version.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// All that this version can forbid, up to version 11, and how much of the structure it knows. What a later one
/// adds is asked for by name only, so that it doesn't matter here.
fn everything(version: u32) -> (Attributes, usize) {
    let handled_access_fs = match version {
        0 | 1 => 0x1fff,
        // LANDLOCK_ACCESS_FS_REFER
        2 => 0x3fff,
        // LANDLOCK_ACCESS_FS_TRUNCATE
        3 | 4 => 0x7fff,
        // LANDLOCK_ACCESS_FS_IOCTL_DEV
        5..9 => 0xffff,
        // LANDLOCK_ACCESS_FS_RESOLVE_UNIX
        9.. => 0x1_ffff,
    };
    let handled_access_net = match version {
        0..4 => 0,
        // LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP
        4..10 => 0x3,
        // LANDLOCK_ACCESS_NET_BIND_UDP and _CONNECT_SEND_UDP
        10.. => 0xf,
    };
    // LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and _SIGNAL
    let scoped = if version >= 6 { 3 } else { 0 };
    let words = match version {
        0..4 => 1,
        4 | 5 => 2,
        6.. => 3,
    };
    (Attributes { handled_access_fs, handled_access_net, scoped }, words * size_of::<u64>())
}

/// Forbids this thread, and those that it starts, all of that. `None` where the host has no Landlock.
pub(super) fn forbid() -> io::Result<Option<u32>> {
    let Some(version) = version() else { return Ok(None) };
    let (attributes, size) = everything(version);
    // SAFETY: the attributes are as large as is said, or larger.
    let ruleset = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0_u32)
    };
    let ruleset = i32::try_from(ruleset).ok().filter(|fd| *fd >= 0);
    let Some(ruleset) = ruleset else { return Err(io::Error::last_os_error()) };
    // SAFETY: it is new and nobody else's.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset) };
    // SAFETY: takes numbers.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    if result == 0 { Ok(Some(version)) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_for_what_it_knows() {
        for (version, fs, net, scoped, size) in [
            (1, 0x1fff, 0, 0, 8),
            (3, 0x7fff, 0, 0, 8),
            (4, 0x7fff, 3, 0, 16),
            (5, 0xffff, 3, 0, 16),
            (6, 0xffff, 3, 3, 24),
            (8, 0xffff, 3, 3, 24),
            (9, 0x1_ffff, 3, 3, 24),
            (10, 0x1_ffff, 0xf, 3, 24),
            (99, 0x1_ffff, 0xf, 3, 24),
        ] {
            let (attributes, bytes) = everything(version);
            let Attributes { handled_access_fs, handled_access_net, scoped: scopes } = attributes;
            let found = (handled_access_fs, handled_access_net, scopes, bytes);
            assert_eq!(found, (fs, net, scoped, size), "{version}");
        }
    }
}
