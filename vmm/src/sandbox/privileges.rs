//! Privileges of the process.

use std::io;

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
