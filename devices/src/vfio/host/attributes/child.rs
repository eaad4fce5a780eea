//! A write by a process of its own.
//!
//! A driver's `remove` may wait for ever for whoever uses its device, deaf to all signals. A thread
//! that waits so keeps its process from ending; a child doesn't keep its parent.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Hung, WriteError};
use crate::stop;

/// How often it is looked whether a signal has come.
const LOOK: Duration = Duration::from_millis(100);

/// How long a signal has to wait for a write that is under way: most take less.
const COURTESY: Duration = Duration::from_secs(1);

/// How many of the kernel's functions are told.
const SHOWN: usize = 6;

/// Where the child has the pipe by which it answers.
const ANSWER: RawFd = 3;

/// Writes, and waits for so long, or less when a signal asks this process to end.
///
/// Where this process may have no child or no pipe (`pids.max`, `RLIMIT_NPROC`, `RLIMIT_NOFILE`) it
/// writes itself: devices are given back within limits too.
pub(super) fn write(path: &Path, value: &str, patience: Duration) -> Result<(), WriteError> {
    let Ok((answer, end)) = io::pipe() else { return write_here(path, value) };
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)?;
    // SAFETY: the child makes system calls on what was made before, and ends.
    match unsafe { libc::fork() } {
        ..0 => write_here(path, value),
        // SAFETY: this is the child.
        0 => unsafe { child(&name, value.as_bytes(), end.as_raw_fd()) },
        pid => {
            drop(end);
            wait(pid, answer, patience)
        }
    }
}

/// Writes without a child, for as long as it takes.
fn write_here(path: &Path, value: &str) -> Result<(), WriteError> {
    Ok(OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())?)
}

/// What the child does: it writes, and answers with the error number or 0.
///
/// # Safety
///
/// To be called in a child of `fork` only. It makes nothing but system calls, since another thread of
/// the parent may hold any lock.
unsafe fn child(path: &CString, value: &[u8], answer: RawFd) -> ! {
    let all = u32::MAX;
    // SAFETY: the paths are C strings, `value` and `errno` are as long as is said. What is closed is
    // the child's own. `_exit` runs nothing of the parent's.
    unsafe {
        // Nothing that somebody else waits to be closed stays open with the child: pipes, locks.
        libc::dup2(answer, ANSWER);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        for fd in libc::STDIN_FILENO..=libc::STDERR_FILENO {
            libc::dup2(null, fd);
        }
        libc::syscall(libc::SYS_close_range, ANSWER.unsigned_abs() + 1, all, 0);
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        let written = match fd {
            ..0 => -1,
            fd => libc::write(fd, value.as_ptr().cast(), value.len()),
        };
        let errno = if written < 0 { *libc::__errno_location() } else { 0 };
        let bytes = errno.to_ne_bytes();
        libc::write(ANSWER, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(0)
    }
}

fn wait(pid: libc::pid_t, mut answer: PipeReader, patience: Duration) -> Result<(), WriteError> {
    let started = Instant::now();
    loop {
        if is_readable(answer.as_raw_fd(), LOOK.min(patience)) {
            let mut errno = [0; 4];
            let read = answer.read_exact(&mut errno);
            // SAFETY: it is our child, about to end; no status is wanted.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            // A child that was killed has not answered.
            read.map_err(|_| io::Error::from(io::ErrorKind::Interrupted))?;
            return match i32::from_ne_bytes(errno) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno).into()),
            };
        }
        let waited = started.elapsed();
        if waited >= patience || (waited >= COURTESY && stop::is_requested()) {
            let (pid, seconds) = (pid.unsigned_abs(), waited.as_secs());
            return Err(WriteError::Hung(Hung { pid, seconds, within: within(pid) }));
        }
    }
}

/// Whether something can be read from this descriptor, or it was closed, within this time.
fn is_readable(fd: RawFd, within: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let milliseconds = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one structure, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) > 0 }
}

/// The functions of the kernel in which a process waits, innermost first: those of its stack where
/// this process may see it, else the one in `wchan` (`proc_pid_stack(5)`, `proc_pid_wchan(5)`).
fn within(pid: u32) -> Vec<String> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let functions = functions(&read("stack"));
    if !functions.is_empty() {
        return functions;
    }
    let wchan = read("wchan");
    if matches!(wchan.as_str(), "" | "0") { Vec::new() } else { vec![wchan] }
}

/// The functions of a stack: a line is `[<0>] msleep+0x2c/0x40`.
fn functions(stack: &str) -> Vec<String> {
    let name = |line: &str| {
        let name = line.split_once("] ")?.1.split(['+', ' ']).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    };
    stack.lines().filter_map(name).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A directory that goes with the test.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("strait-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_written_is_there_and_what_is_refused_is_told() {
        let scratch = Scratch::new("writes");
        let file = scratch.0.join("attribute");
        fs::write(&file, "").unwrap();
        write(&file, "0000:00:05.0", Duration::from_secs(60)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "0000:00:05.0");
        for (path, expected) in [("/dev/full", libc::ENOSPC), ("/nowhere/x", libc::ENOENT)] {
            match write(Path::new(path), "x", Duration::from_secs(60)) {
                Err(WriteError::Refused(error)) => assert_eq!(error.raw_os_error(), Some(expected)),
                other => panic!("{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_write_that_hangs_is_given_up_and_explained() {
        let scratch = Scratch::new("hangs");
        // The kernel lets nobody open a pipe for writing that nobody reads.
        let pipe = scratch.0.join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let started = Instant::now();
        let hung = match write(&pipe, "x", Duration::from_millis(300)) {
            Err(WriteError::Hung(hung)) => hung,
            other => panic!("{other:?}"),
        };
        assert!(started.elapsed() < Duration::from_secs(30));
        assert!(hung.to_string().contains(&format!("process {}", hung.pid)), "{hung}");
        // SAFETY: it is our child, which hasn't been waited for.
        unsafe {
            libc::kill(hung.pid.cast_signed(), libc::SIGKILL);
            libc::waitpid(hung.pid.cast_signed(), std::ptr::null_mut(), 0);
        }
    }

    #[test]
    fn a_stack_is_told_by_its_functions() {
        let stack = "[<0>] msleep+0x2c/0x40\n[<0>] p9_virtio_remove+0x98/0x150 [9pnet_virtio]\n";
        assert_eq!(functions(stack), ["msleep", "p9_virtio_remove"]);
        for nonsense in ["", "\n", "[<0>] ", "msleep"] {
            assert!(functions(nonsense).is_empty(), "{nonsense}");
        }
    }
}
