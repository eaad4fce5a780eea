//! What of a process's resources, and of its memory's traces, remains.

use std::io;
use std::ptr::NonNull;

/// More descriptors than a run is planned to have: they may have been counted short by a few.
const SPARE_DESCRIPTORS: u64 = 64;

/// Leaves the process no core dump (`core(5)`): none is written, none handed to a program, and nobody but
/// root may look into it (`PR_SET_DUMPABLE`). `ram` is left out in any case.
pub(super) fn forbid_dumps(ram: (NonNull<u8>, usize)) -> io::Result<()> {
    let (start, size) = ram;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the first reads one `rlimit`, the second takes numbers.
    let denied = unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none) != 0
            || libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) != 0
    };
    if denied {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: changes nothing of the memory. Hosts without CONFIG_ADVISE_SYSCALLS refuse, and then what
    // is above remains.
    unsafe { libc::madvise(start.as_ptr().cast(), size, libc::MADV_DONTDUMP) };
    Ok(())
}

/// Lets the process have at most so many descriptors beside those that are open.
pub(super) fn bound_descriptors(more: u64) -> io::Result<()> {
    // The lowest that is free: all below are open.
    // SAFETY: takes a descriptor, which may be closed.
    let free = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, 0) };
    let Ok(open) = u64::try_from(free) else { return Err(io::Error::last_os_error()) };
    // SAFETY: it was just made here.
    unsafe { libc::close(free) };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one `rlimit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let most = open.saturating_add(more).saturating_add(SPARE_DESCRIPTORS).min(limit.rlim_max);
    let bound = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: reads one `rlimit`. Lowering it needs no privilege.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const bound) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
