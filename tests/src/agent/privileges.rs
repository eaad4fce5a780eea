//! Running something as an ordinary user with ordinary limits, or with signals as a careless launcher leaves them.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::{CommandError, number, number32};

/// Becomes user (and group) `user` without supplementary groups or capabilities, with the limits
/// given as `memlock=BYTES`, and runs the rest as a command.
pub(crate) fn run(user: &str, words: &[&str]) -> Result<(), CommandError> {
    let user = number32(user)?;
    let (limit, command) = match words {
        [limit, command @ ..] if limit.starts_with("memlock=") => {
            (Some(number(limit.trim_start_matches("memlock="))?), command)
        }
        command => (None, command),
    };
    let [program, arguments @ ..] = command else {
        return Err("nothing to run".into());
    };
    if let Some(bytes) = limit {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: `limit` outlives the call, which only reads it.
        if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
    // Leaving uid 0 for good clears all capabilities (capabilities(7)).
    // SAFETY: no groups are passed, so that the null list isn't read; the others take numbers.
    let dropped = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(user, user, user) == 0
            && libc::setresuid(user, user, user) == 0
    };
    if !dropped {
        return Err(io::Error::last_os_error().into());
    }
    Err(Command::new(program).args(arguments).exec().into())
}

/// Ignores the signals of these numbers, blocks all, and runs a command: both is inherited (execve(2)).
pub(crate) fn without_signals(ignored: &str, command: &[&str]) -> Result<(), CommandError> {
    let [program, arguments @ ..] = command else {
        return Err("nothing to run".into());
    };
    for signal in ignored.split(',') {
        // SAFETY: SIG_IGN is a valid disposition.
        if unsafe { libc::signal(signal.parse()?, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error().into());
        }
    }
    let mut all = MaybeUninit::uninit();
    // SAFETY: sigfillset fills the set, which the other reads.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
    }
    Err(Command::new(program).args(arguments).exec().into())
}

/// Lets `process` have no descriptor of number `count` or above from now on.
pub(crate) fn limit_files(process: u32, count: u64) -> Result<(), CommandError> {
    let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
    let process = i32::try_from(process)?;
    // SAFETY: `limit` outlives the call, which only reads it, and nothing is asked for.
    let failed = unsafe {
        libc::prlimit(process, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    if failed != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}
