//! A file that a console's output is appended to.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::error::Error;

/// Opens or creates the file, then readable and writable by its owner only: what a guest prints may be
/// secret. What is in it stays, as it may be the last words of the guest before. `option` is what the
/// path was given to.
///
/// # Errors
///
/// It can't be opened, or is neither a regular file nor a device such as /dev/null.
pub(super) fn open(path: &Path, option: &str) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    // Neither waits for a pipe's reader nor for a modem.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    options.append(true).create(true).mode(0o600).custom_flags(flags);
    let failed = |why: &str| {
        Error::new(format!("{option}{}: {why}", path.display()))
            .help(format!("{option}PATH in a directory you can write to"))
    };
    let file = options.open(path).map_err(|e| failed(&format!("it can't be written: {e}")))?;
    let metadata = file.metadata().map_err(|e| failed(&e.to_string()))?;
    // SAFETY: isatty takes any descriptor.
    let is_terminal = unsafe { libc::isatty(std::os::fd::AsRawFd::as_raw_fd(&file)) == 1 };
    if metadata.is_file() || (metadata.file_type().is_char_device() && !is_terminal) {
        Ok(file)
    } else {
        Err(failed("it is no regular file"))
    }
}
