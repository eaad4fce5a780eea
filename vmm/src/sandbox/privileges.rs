//! Who the process is, and what it may do.

use std::io;
use std::ptr;

/// The highest capability that the kernel's interface has room for (linux/capability.h).
const CAPABILITIES: libc::c_ulong = 64;

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

/// From here on user IDs are nobody's: above those of people, services and containers (systemd's "Users,
/// Groups, UIDs and GIDs on systemd Systems" has 0x6fff_ffff as the last of these).
const FIRST_DYNAMIC: u32 = 0x7000_0000;

/// Who nobody is where there are no other IDs, as in a container with few of them.
const NOBODY: u32 = 65534;

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The user's ID.
    pub user: u32,
    /// The group's.
    pub group: u32,
}

impl Identity {
    /// The ID that no other process has, made of this one's.
    pub(super) fn dynamic() -> Self {
        let id = FIRST_DYNAMIC.saturating_add(std::process::id());
        Self { user: id, group: id }
    }

    /// Nobody.
    pub(super) const NOBODY: Self = Self { user: NOBODY, group: NOBODY };

    /// Becomes this user, with this group and no others, in all threads.
    pub(super) fn assume(self) -> io::Result<()> {
        let Self { user, group } = self;
        // SAFETY: there are no groups to be read; the others take numbers.
        let denied = unsafe {
            libc::setgroups(0, ptr::null()) != 0
                || libc::setresgid(group, group, group) != 0
                || libc::setresuid(user, user, user) != 0
        };
        if denied { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Whether this process is root.
pub(super) fn is_root() -> bool {
    // SAFETY: takes nothing, and can't fail.
    unsafe { libc::geteuid() == 0 }
}

/// Takes all capabilities off this thread's bounding set, where it may.
pub(super) fn empty_bounding_set() {
    for capability in 0..CAPABILITIES {
        // SAFETY: takes numbers. The kernel refuses those that it doesn't have.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            break;
        }
    }
}

/// Capabilities that this thread keeps as permitted ones, where it becomes another user
/// (`PR_SET_KEEPCAPS`).
pub(super) struct Kept;

impl Kept {
    /// Keeps them from here on.
    pub(super) fn begin() -> Self {
        // SAFETY: takes numbers. Where it is refused, nothing is kept.
        unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) };
        Self
    }

    /// Makes those that are permitted effective again, as far as that may be.
    #[cold]
    pub(super) fn use_again(self) {
        let header = Header { version: VERSION, pid: 0 };
        let mut data = [0_u32; 6];
        // SAFETY: reads the header, and fills data of the size that goes with its version.
        let known =
            unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) } == 0;
        let [effective, permitted, _, effective_high, permitted_high, _] = &mut data;
        (*effective, *effective_high) = (*permitted, *permitted_high);
        if known {
            // SAFETY: reads the header, and data of that size.
            unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
        }
    }
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// Gives up all capabilities of this thread: the effective, permitted and inheritable ones, and with these
/// the ambient ones.
pub(super) fn drop_capabilities() -> io::Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    // Two times three words: `struct __user_cap_data_struct`.
    let none = [0_u32; 6];
    // SAFETY: reads the header, and data of the size that goes with its version.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has this thread, and those that it starts, gain no privileges by programs that they execute
/// (`PR_SET_NO_NEW_PRIVS`, Documentation/userspace-api/no_new_privs.rst). Landlock and filters of
/// unprivileged processes need it.
pub(super) fn gain_no_new() -> io::Result<()> {
    // SAFETY: takes numbers.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Does `change`, which may make the kernel forget that this process is to end with its parent
/// (`PR_SET_PDEATHSIG`), and has it end so again.
pub(super) fn keeping_parent<T>(change: impl FnOnce() -> T) -> T {
    let mut signal: libc::c_int = 0;
    // SAFETY: takes nothing, and can't fail.
    let parent = unsafe { libc::getppid() };
    // SAFETY: fills the number.
    unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
    let changed = change();
    if signal != 0 {
        // SAFETY: takes numbers. Should the parent have ended meanwhile, nobody waits for this process.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::c_ulong::from(signal.unsigned_abs()));
            if libc::getppid() != parent {
                libc::_exit(1);
            }
        }
    }
    changed
}
