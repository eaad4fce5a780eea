//! Locks on files, so that no two guests write to one (`F_OFD_SETLK`, fcntl(2)).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::release;

/// Locks all of a file, for this process alone if it is `exclusive`. The lock goes with the file's
/// description: no end of a process leaves it behind. `false` if somebody else's lock is there, and stays.
///
/// # Errors
///
/// The kernel or the file system has no such locks.
pub(crate) fn lock(file: &File, exclusive: bool) -> io::Result<bool> {
    release::wait(|| try_lock(file, exclusive), |locked| matches!(locked, Ok(false)))
}

fn try_lock(file: &File, exclusive: bool) -> io::Result<bool> {
    // SAFETY: all zeroes is a valid `flock`: from the start (SEEK_SET is 0) to the end of the file.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    range.l_type = libc::c_short::try_from(kind).unwrap_or_default();
    // SAFETY: reads one `flock`.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        // A kernel without FILE_LOCKING says EACCES (`fcntl_setlk` of Linux' include/linux/filelock.h).
        e if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        e => Err(e),
    }
}

/// The processes that have the file open, as far as this user may know, for the end of a message.
#[cold]
pub(crate) fn users(path: &Path) -> String {
    let (Ok(path), Ok(entries)) = (fs::canonicalize(path), fs::read_dir("/proc")) else {
        return String::new();
    };
    let mut users = Vec::new();
    for process in entries.flatten().map(|entry| entry.path()) {
        let Ok(files) = fs::read_dir(process.join("fd")) else { continue };
        let is_it = |file: fs::DirEntry| fs::read_link(file.path()).is_ok_and(|to| to == path);
        let pid = process.file_name().unwrap_or_default().to_string_lossy();
        // Not /proc/self and the like.
        let Ok(pid) = pid.parse::<u32>() else { continue };
        if pid == std::process::id() || !files.flatten().any(is_it) {
            continue;
        }
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        users.push(format!("process {pid} ({})", name.trim_end()));
    }
    if users.is_empty() { String::new() } else { format!(": {}", users.join(", ")) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A file, and two descriptions of it.
    fn opened(name: &str) -> (std::path::PathBuf, [File; 2]) {
        let path = std::env::temp_dir().join(format!("lock-{}-{name}", std::process::id()));
        let open = || File::options().write(true).create(true).truncate(false).open(&path).unwrap();
        let both = [open(), open()];
        (path, both)
    }

    #[test]
    fn a_lock_that_goes_is_waited_for() {
        let (path, [first, second]) = opened("goes");
        assert!(lock(&first, true).unwrap());
        let going = thread::spawn(move || {
            thread::sleep(release::TIMEOUT / 10);
            drop(first);
        });
        assert!(lock(&second, true).unwrap());
        going.join().unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_lock_that_stays_is_told() {
        let (path, [first, second]) = opened("stays");
        assert!(lock(&first, true).unwrap() && !lock(&second, true).unwrap());
        fs::remove_file(path).unwrap();
    }
}
