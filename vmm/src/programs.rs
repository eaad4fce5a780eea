//! Programs that strait starts to serve devices, and that end with it.
//!
//! The parent has them; the process with the guest has their connections, and what the parent tells of
//! their ends.

use std::env;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use devices::vhost_user::Program;

use crate::shared_memory;

/// How long the end of a program is waited for, once its connection is closed, before it is killed; and
/// when its connection was closed by the program, until its status is there.
const GRACE: Duration = Duration::from_millis(300);

/// A program that was started. It is killed if it doesn't end by itself, and if strait dies.
#[derive(Debug)]
pub struct ChildProgram {
    child: Child,
    status: &'static AtomicU64,
    /// What is readable once it has ended.
    ended: Option<OwnedFd>,
}

/// Set in a program's status, beside what wait(2) has, when it has ended.
const ENDED: u64 = 1 << 32;

/// How a program has ended, told by the parent.
#[derive(Debug)]
pub struct ProgramStatus(&'static AtomicU64);

/// A program as the process with the guest has it.
#[derive(Debug)]
pub struct Served {
    /// The connection to it.
    pub stream: UnixStream,
    /// Its file.
    pub file: PathBuf,
    /// How it has ended.
    pub status: ProgramStatus,
}

impl ChildProgram {
    /// Starts a program that inherits `descriptor`, whose number is the same in it. Its errors are
    /// strait's own.
    ///
    /// To be called before strait forks: then its parent has the program.
    ///
    /// To be called by the main thread: the program is killed when the thread ends that started it.
    ///
    /// # Errors
    ///
    /// It can't be executed, or the host has no more processes.
    #[cold]
    pub fn start(command: &mut Command, descriptor: &OwnedFd) -> io::Result<Self> {
        let number = descriptor.as_raw_fd();
        // SAFETY: takes nothing, and can't fail.
        let parent = unsafe { libc::getpid() };
        let prepare = move || {
            let ends_with_parent = libc::c_ulong::from(libc::SIGKILL.unsigned_abs());
            // SAFETY: each takes numbers only, and may be called between fork and exec
            // (signal-safety(7), prctl(2) and fcntl(2) being system calls).
            unsafe {
                if libc::prctl(libc::PR_SET_PDEATHSIG, ends_with_parent) != 0
                    || libc::fcntl(number, libc::F_SETFD, 0) != 0
                {
                    return Err(io::Error::last_os_error());
                }
                // It may have died before.
                if libc::getppid() != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
            }
            Ok(())
        };
        // In a process group of its own: what is typed on the terminal is not for it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        // SAFETY: the function makes system calls only.
        unsafe { command.pre_exec(prepare) };
        let statuses = shared_memory::words(1)?;
        let status = statuses.first().ok_or(io::ErrorKind::OutOfMemory)?;
        let child = command.spawn()?;
        let ended = open_process(child.id()).ok();
        Ok(Self { child, status, ended })
    }

    /// How it has ended, once the parent tells.
    pub fn status(&self) -> ProgramStatus {
        ProgramStatus(self.status)
    }

    /// What is readable once it has ended, until that was [told](Self::tell); -1 for nothing.
    pub fn ended(&self) -> RawFd {
        self.ended.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Tells how it has ended, if it has.
    pub fn tell(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            let status = u64::from(status.into_raw().cast_unsigned());
            self.status.store(ENDED | status, Ordering::Release);
            self.ended = None;
        }
    }

    /// Leaves it to the parent, which has it.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// Its status, if it ends within the time.
    fn wait(&mut self, time: Duration) -> Option<ExitStatus> {
        let since = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if since.elapsed() < time => thread::sleep(Duration::from_millis(1)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// A descriptor of a process, which is readable once that has ended (`pidfd_open(2)`).
///
/// # Errors
///
/// There is no such process, or the host has no descriptors.
pub fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers; returns a descriptor of ours or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(fd) {
        // SAFETY: it is new and nobody else's.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

impl ProgramStatus {
    /// Its status, if it ends within the time.
    fn wait(&self, time: Duration) -> Option<ExitStatus> {
        let since = Instant::now();
        loop {
            let status = self.0.load(Ordering::Acquire);
            if status & ENDED != 0 {
                let status = u32::try_from(status & !ENDED).unwrap_or_default();
                return Some(ExitStatus::from_raw(status.cast_signed()));
            }
            if since.elapsed() >= time {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Program for ProgramStatus {
    fn ending(&mut self) -> Option<String> {
        let status = self.wait(GRACE)?;
        Some(match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with status {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        })
    }
}

impl Drop for ChildProgram {
    fn drop(&mut self) {
        if self.wait(GRACE).is_none() {
            // Both fail only if it has ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The program of this name in one of these directories, or in `$PATH`.
#[cold]
pub fn find(name: &str, directories: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let of_path = env::split_paths(&path).filter(|directory| directory.is_absolute());
    let own = directories.iter().map(PathBuf::from);
    own.chain(of_path).map(|directory| directory.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    let Ok(text) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path is a C string.
    path.is_file() && unsafe { libc::access(text.as_ptr(), libc::X_OK) } == 0
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn start(script: &str) -> (ChildProgram, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("FD", theirs.as_raw_fd().to_string());
        (ChildProgram::start(&mut command, &theirs).unwrap(), ours)
    }

    #[test]
    fn a_program_has_the_descriptor_and_ends_with_its_handle() {
        let (program, mut ours) = start("exec sleep 1000");
        let pid = program.child.id();
        drop(program);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        // What it had is closed.
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn how_a_program_ended_is_told() {
        for (script, expected) in [
            // It has the descriptor.
            ("test -S /proc/self/fd/$FD && exit 3", Some("ended with status 3")),
            ("kill -9 $$", Some("was ended by signal 9")),
            ("exec sleep 1000", None),
        ] {
            let (mut program, _ours) = start(script);
            let mut status = program.status();
            let telling = thread::spawn(move || {
                let since = Instant::now();
                while since.elapsed() < Duration::from_secs(1) && program.ended() >= 0 {
                    program.tell();
                }
            });
            assert_eq!(status.ending().as_deref(), expected, "{script}");
            telling.join().unwrap();
        }
    }

    #[test]
    fn programs_are_found_by_name() {
        assert_eq!(find("sh", &["/no/such/directory", "/bin"]), Some("/bin/sh".into()));
        assert!(find("sh", &[]).is_some());
        assert_eq!(find("no-such-program", &["/bin"]), None);
        assert_eq!(find("etc", &["/"]), None);
    }
}
