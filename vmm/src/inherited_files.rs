//! Descriptors that whoever starts strait has opened for it (`fd=N`, `--iommufd-fd N`): this process has duplicates
//! of those that it uses, and keeps no other one. A device whose file stayed open anywhere couldn't be taken
//! back by the host.

use std::os::fd::RawFd;

use crate::cli::RunOptions;

/// Has no program inherit them.
pub fn close_on_exec(options: &RunOptions) {
    for fd in numbers(options) {
        // SAFETY: takes numbers. Descriptors of this process have the flag anyway.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Closes them: to be called once, by each of the two processes, when it opens no further file by them.
pub fn close(options: &RunOptions) {
    for fd in numbers(options) {
        // SAFETY: open since strait was started (`cli::values::descriptor`), so that nothing of this process owns
        // it; and closed once, as the caller does it once and each number comes once.
        unsafe { libc::close(fd) };
    }
}

/// Their numbers, each once; none of a standard stream.
fn numbers(options: &RunOptions) -> Vec<RawFd> {
    let mut numbers: Vec<_> = options.inherited().filter(|fd| *fd > libc::STDERR_FILENO).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}
