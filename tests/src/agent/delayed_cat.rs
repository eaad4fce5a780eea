//! A reader that lets the writer wait.

use std::io;
use std::thread;
use std::time::Duration;

use crate::CommandError;

/// The smallest pipe, in bytes (pipe(7), "Pipe capacity").
const PIPE: i32 = 4096;

/// Makes the pipe on standard input as small as can be, reads nothing for a while, then copies it
/// all to standard output.
pub(crate) fn copy(seconds: u64) -> Result<(), CommandError> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::fcntl(libc::STDIN_FILENO, libc::F_SETPIPE_SZ, PIPE) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    thread::sleep(Duration::from_secs(seconds));
    io::copy(&mut io::stdin().lock(), &mut io::stdout().lock())?;
    Ok(())
}
