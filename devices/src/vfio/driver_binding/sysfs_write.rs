//! Writes to sysfs attributes, each by a child process.
//!
//! A driver's `remove` may wait without end for the users of its device, and no signal ends that wait. A
//! thread in it would keep strait from exiting; a child process doesn't. The trait lets what changes
//! drivers be tested without a kernel.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::poll;
use crate::stop;

/// How long a driver may take to probe or remove a device. Those of disks and network cards take a
/// second or two.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often is looked where a process waits, and how long after each other.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// How often the stop flag is read while a write is under way.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long a write may still take once strait is to stop: most take less.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// How many functions of the kernel's stack are reported.
const MAX_FUNCTIONS: usize = 6;

/// The child's descriptor of the pipe by which it reports the result.
const RESULT_FD: RawFd = 3;

/// Why an attribute couldn't be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// `open(2)` or `write(2)` failed.
    #[error(transparent)]
    Refused(#[from] io::Error),
    /// The write hasn't returned in time.
    #[error("{0}")]
    Hung(HungWrite),
}

/// A write that hasn't returned: a child process waits for it in the kernel, possibly unkillable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HungWrite {
    /// The child process.
    pub pid: u32,
    /// How long strait has waited, in seconds.
    pub seconds: u64,
    /// The functions of the kernel in which it waits, innermost first; empty where the kernel doesn't
    /// tell.
    pub within: Vec<String>,
}

impl fmt::Display for HungWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, seconds, within } = self;
        write!(f, "the kernel hasn't answered process {pid} for {seconds} s")?;
        match &within[..] {
            [] => Ok(()),
            within => write!(f, ", which waits in {}", within.join(" < ")),
        }
    }
}

/// Writes sysfs attributes.
pub trait AttributeWriter {
    /// Writes `value` to the attribute at `path` by one `write(2)`, as sysfs requires.
    ///
    /// # Errors
    ///
    /// As from `open(2)` and `write(2)`, with the error of the driver core or of a driver; or the write
    /// doesn't return in time.
    fn write(&self, path: &Path, value: &str) -> Result<(), WriteError>;
}

/// The attributes of the running kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sysfs;

impl AttributeWriter for Sysfs {
    #[cold]
    fn write(&self, path: &Path, value: &str) -> Result<(), WriteError> {
        write(path, value, WRITE_TIMEOUT)
    }
}

/// Writes by a child process, and waits for it until `timeout`, or less once strait is to stop.
///
/// Where this process may have no child or no pipe (`pids.max`, `RLIMIT_NPROC`, `RLIMIT_NOFILE`) it
/// writes itself, so that devices are given back under such limits too.
fn write(path: &Path, value: &str, timeout: Duration) -> Result<(), WriteError> {
    let Ok((result, sender)) = io::pipe() else { return write_here(path, value) };
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)?;
    // SAFETY: the child makes system calls on what was made before, and ends.
    match unsafe { libc::fork() } {
        ..0 => write_here(path, value),
        // SAFETY: this is the child.
        0 => unsafe { child(&name, value.as_bytes(), sender.as_raw_fd()) },
        pid => {
            drop(sender);
            wait(pid, result, timeout)
        }
    }
}

/// Writes by this process, without a timeout.
fn write_here(path: &Path, value: &str) -> Result<(), WriteError> {
    Ok(OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())?)
}

/// Writes and reports the error number, or 0, through `result`.
///
/// # Safety
///
/// Only in a child of `fork`. It makes system calls only, since another thread of the parent may have
/// held any lock.
unsafe fn child(path: &CString, value: &[u8], result: RawFd) -> ! {
    let all = u32::MAX;
    // SAFETY: the paths are C strings, `value` and `errno` are as long as is said. What is closed is
    // the child's own. `_exit` runs nothing of the parent's.
    unsafe {
        // Closes what others wait to see closed: pipes, locked files.
        libc::dup2(result, RESULT_FD);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        for fd in libc::STDIN_FILENO..=libc::STDERR_FILENO {
            libc::dup2(null, fd);
        }
        libc::syscall(libc::SYS_close_range, RESULT_FD.unsigned_abs() + 1, all, 0);
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        let written = match fd {
            ..0 => -1,
            fd => libc::write(fd, value.as_ptr().cast(), value.len()),
        };
        let errno = if written < 0 { *libc::__errno_location() } else { 0 };
        let bytes = errno.to_ne_bytes();
        libc::write(RESULT_FD, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(0)
    }
}

/// Waits for the child's result.
fn wait(pid: libc::pid_t, mut result: PipeReader, timeout: Duration) -> Result<(), WriteError> {
    let started = Instant::now();
    loop {
        if is_readable(result.as_raw_fd(), POLL_INTERVAL.min(timeout)) {
            let mut errno = [0; 4];
            let read = result.read_exact(&mut errno);
            // SAFETY: it is our child, about to end; no status is options.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            // A child that was killed has reported nothing.
            read.map_err(|_| io::Error::from(io::ErrorKind::Interrupted))?;
            return match i32::from_ne_bytes(errno) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno).into()),
            };
        }
        let waited = started.elapsed();
        if waited >= timeout || (waited >= STOP_GRACE && stop::is_requested()) {
            let (pid, seconds) = (pid.unsigned_abs(), waited.as_secs());
            return Err(WriteError::Hung(HungWrite { pid, seconds, within: within(pid) }));
        }
    }
}

/// Whether something can be read from this descriptor, or it was closed, within this time.
fn is_readable(fd: RawFd, within: Duration) -> bool {
    poll::wait(&mut [poll::readable(fd)], Some(within)).is_ok_and(|ready| ready > 0)
}

/// The functions of the kernel in which a process waits, innermost first; none if it runs each time that is
/// looked, as one may that waits for a moment again and again.
fn within(pid: u32) -> Vec<String> {
    for _ in 0..LOOKS {
        let functions = waits_in(pid);
        if !functions.is_empty() {
            return functions;
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    Vec::new()
}

/// The same, at this moment: those of its stack where this process may see it, else the one in `wchan`
/// (`proc_pid_stack(5)`, `proc_pid_wchan(5)`).
fn waits_in(pid: u32) -> Vec<String> {
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
    stack.lines().filter_map(name).take(MAX_FUNCTIONS).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A directory that is removed with the test.
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
    fn a_write_reaches_the_file_or_returns_the_error() {
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
    fn a_write_that_hangs_is_abandoned_and_explained() {
        let scratch = Scratch::new("hangs");
        // The kernel lets nobody open a pipe for writing that nobody reads.
        let pipe = scratch.0.join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let started = Instant::now();
        let hung = match write(&pipe, "x", Duration::from_millis(300)) {
            Err(WriteError::Hung(hung)) => hung,
            other => panic!("{other:?}"),
        };
        assert!(started.elapsed() < Duration::from_secs(60));
        assert!(hung.to_string().contains(&format!("process {}", hung.pid)), "{hung}");
        // SAFETY: it is our child, which hasn't been waited for.
        unsafe {
            libc::kill(hung.pid.cast_signed(), libc::SIGKILL);
            libc::waitpid(hung.pid.cast_signed(), std::ptr::null_mut(), 0);
        }
    }

    #[test]
    fn a_stack_is_reported_by_its_functions() {
        let stack = "[<0>] msleep+0x2c/0x40\n[<0>] p9_virtio_remove+0x98/0x150 [9pnet_virtio]\n";
        assert_eq!(functions(stack), ["msleep", "p9_virtio_remove"]);
        for nonsense in ["", "\n", "[<0>] ", "msleep"] {
            assert!(functions(nonsense).is_empty(), "{nonsense}");
        }
    }
}
