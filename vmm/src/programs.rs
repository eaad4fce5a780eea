//! Programs that strait starts to serve devices, and that end with it.
//!
//! The parent has them; the process with the guest has their connections, and what the parent tells of
//! their ends.

use std::env;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use devices::poll;
use devices::ratelimit::LogLimit;
use devices::vhost_user::Program;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::error::Error;
use crate::shared_memory;

/// How long the end of a program is waited for, once its connection is closed, before it is killed; and
/// when its connection was closed by the program, until its status is there.
const GRACE: Duration = Duration::from_millis(300);

/// How long the end of a program that was killed is waited for: it has none while it waits in the kernel for
/// a file system or a device that doesn't answer.
const KILL_TIME: Duration = Duration::from_secs(1);

/// How long the restart of a program may take.
const RESTART_TIME: Duration = Duration::from_secs(5);

/// In how many steps that is waited for: time during which strait itself is stopped (Ctrl-Z) counts as one.
const STEPS: u32 = 50;

/// A program isn't started again sooner than this after its last start, or the attempt at it.
const LIFE: Duration = Duration::from_secs(1);

/// A program that was just started.
#[derive(Debug)]
pub struct Started {
    /// The connection to it.
    pub stream: UnixStream,
    /// Its file.
    pub file: PathBuf,
    /// The process.
    pub child: Child,
}

/// A program that was started. It is killed if it doesn't end by itself, and if strait dies.
#[derive(Debug)]
pub struct ChildProgram {
    child: Child,
    /// When its start was tried last.
    since: Instant,
    /// For what a guest can cause.
    log: LogLimit,
    status: &'static AtomicU64,
    /// What is readable once it has ended.
    ended: Option<OwnedFd>,
    /// On which the process with the guest asks for another start, and gets the connection.
    restarts: Option<UnixStream>,
}

/// Set in a program's status, beside what wait(2) has, when it has ended.
const ENDED: u64 = 1 << 32;

/// A program, to the process with the guest, in which it isn't a child.
#[derive(Debug)]
pub struct ProgramHandle {
    /// How it has ended, told by the parent.
    status: &'static AtomicU64,
    restarts: UnixStream,
    /// It was asked for another start, and hasn't answered yet.
    is_asked: bool,
}

/// A program as the process with the guest has it.
#[derive(Debug)]
pub struct Served {
    /// The connection to it.
    pub stream: UnixStream,
    /// Its file.
    pub file: PathBuf,
    /// Itself.
    pub program: ProgramHandle,
}

/// Starts a program that inherits `descriptor`, whose number is the same in it. Its errors are strait's
/// own.
///
/// To be called by the main thread: the program is killed when the thread ends that started it.
///
/// # Errors
///
/// It can't be executed, or the host has no more processes.
#[cold]
pub fn spawn(command: &mut Command, descriptor: &OwnedFd) -> io::Result<Child> {
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
    command.spawn()
}

impl ChildProgram {
    /// Takes charge of a program.
    ///
    /// To be called before strait forks: then its parent has the program.
    ///
    /// # Errors
    ///
    /// The host has no more memory or descriptors; the program is killed.
    #[cold]
    pub fn new(started: Started) -> io::Result<(Served, Self)> {
        let Started { stream, file, mut child } = started;
        let shared = || {
            let status = shared_memory::words(1)?.first().ok_or(io::ErrorKind::OutOfMemory)?;
            Ok((status, UnixStream::pair()?))
        };
        let (status, (ours, theirs)) = shared().inspect_err(|_: &io::Error| {
            kill(&mut child);
        })?;
        let ended = open_process(child.id()).ok();
        let program = ProgramHandle { status, restarts: theirs, is_asked: false };
        let (restarts, since) = (Some(ours), Instant::now());
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let log = LogLimit::named(name.into_owned());
        let served = Served { stream, file, program };
        Ok((served, Self { child, since, log, status, ended, restarts }))
    }

    /// The log for what fails as often as its guest wants.
    pub fn log(&self) -> &LogLimit {
        &self.log
    }

    /// What is readable once it has ended, until that was [told](Self::tell), and once it is to be
    /// started again; -1 for nothing.
    pub fn descriptors(&self) -> [RawFd; 2] {
        let restarts = self.restarts.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        [self.ended.as_ref().map_or(-1, AsRawFd::as_raw_fd), restarts]
    }

    /// Tells how it has ended, if it has.
    pub fn tell(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            let status = u64::from(status.into_raw().cast_unsigned());
            self.status.store(ENDED | status, Ordering::Release);
            self.ended = None;
        }
    }

    /// Starts it again by `start`, if the process with the guest asks for that.
    ///
    /// # Errors
    ///
    /// Those of `start`; or it can't be ended.
    pub fn serve_restart(
        &mut self,
        start: impl FnOnce() -> Result<Started, Error>,
    ) -> Result<(), Error> {
        let Some(restarts) = self.restarts.take() else { return Ok(()) };
        let mut asked = [0];
        // SAFETY: there is room for one byte.
        let read = unsafe {
            let flags = libc::MSG_DONTWAIT;
            libc::recv(restarts.as_raw_fd(), asked.as_mut_ptr().cast(), asked.len(), flags)
        };
        match read {
            1 => {}
            // The other process has ended.
            0 => return Ok(()),
            _ => {
                self.restarts = Some(restarts);
                return Ok(());
            }
        }
        // One that hangs was given up.
        let started = self.start_again(start).transpose();
        let stream = match &started {
            Ok(Some(started)) => {
                self.status.store(0, Ordering::Release);
                vec![started.stream.as_raw_fd()]
            }
            _ => Vec::new(),
        };
        let answer = [asked.as_slice()];
        if restarts.send_with_fds(&answer, &stream).is_err() {
            // It waits for an answer. This fails only if it has ended, which tells more.
            let _ = restarts.send_with_fds(&answer, &[]);
        }
        self.restarts = Some(restarts);
        if let Some(Started { child, .. }) = started? {
            self.ended = open_process(child.id()).ok();
            (self.child, self.since) = (child, Instant::now());
        }
        Ok(())
    }

    /// Ends it, and starts it again unless it was just tried.
    fn start_again(
        &mut self,
        start: impl FnOnce() -> Result<Started, Error>,
    ) -> Option<Result<Started, Error>> {
        if !self.end() {
            // Else a guest could have any number of them.
            return Some(Err(Error::new(self.stuck())));
        }
        (self.since.elapsed() >= LIFE).then(|| {
            self.since = Instant::now();
            start()
        })
    }

    /// Leaves it to the parent, which has it.
    pub fn leave(mut self) {
        (self.ended, self.restarts) = (None, None);
        std::mem::forget(self);
    }

    /// Waits for its end, and kills it if it doesn't come; whether it has ended.
    fn end(&mut self) -> bool {
        ends_within(&mut self.child, GRACE) || kill(&mut self.child)
    }

    /// That it can't be ended.
    #[cold]
    fn stuck(&self) -> String {
        let pid = self.child.id();
        format!(
            "process {pid} doesn't end by SIGKILL: it waits in the kernel, maybe for storage that doesn't \
             answer (/proc/{pid}/stack)"
        )
    }
}

/// Whether it ends within the time, or isn't there.
fn ends_within(child: &mut Child, time: Duration) -> bool {
    let since = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if since.elapsed() < time => thread::sleep(Duration::from_millis(1)),
            Ok(status) => return status.is_some(),
            Err(_) => return true,
        }
    }
}

/// Kills a program; whether it has ended.
fn kill(child: &mut Child) -> bool {
    // Fails only if it has ended.
    let _ = child.kill();
    ends_within(child, KILL_TIME)
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

impl ProgramHandle {
    /// Its status, if it ends within the time.
    fn wait(&self, time: Duration) -> Option<ExitStatus> {
        let since = Instant::now();
        loop {
            let status = self.status.load(Ordering::Acquire);
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

    /// Has it started again within the time.
    fn restart_within(&mut self, time: Duration) -> io::Result<UnixStream> {
        if self.is_asked {
            // An answer that came too late is this one's: a second program would end the first. It isn't
            // where it tells of one that has ended since.
            let late = self.answer(time);
            if self.is_asked || late.is_ok() && self.wait(Duration::ZERO).is_none() {
                return late;
            }
        }
        (&self.restarts).write_all(&[0])?;
        self.is_asked = true;
        self.answer(time)
    }

    /// The answer to who has asked, if it comes within the time.
    fn answer(&mut self, time: Duration) -> io::Result<UnixStream> {
        let socket = self.restarts.as_raw_fd();
        let mut steps = 0..STEPS;
        // A wait that has failed has found nothing.
        let is_there = steps.any(|_| {
            poll::wait(&mut [poll::readable(socket)], Some(time / STEPS)).is_ok_and(|n| n > 0)
        });
        if !is_there {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.is_asked = false;
        let (read, file) = self.restarts.recv_with_fd(&mut [0])?;
        match (read, file) {
            (0, _) => Err(io::ErrorKind::BrokenPipe.into()),
            (_, Some(file)) => Ok(OwnedFd::from(file).into()),
            (_, None) => Err(io::Error::other("it ends again and again, or can't be executed")),
        }
    }
}

impl Program for ProgramHandle {
    fn ending(&mut self) -> Option<String> {
        let status = self.wait(GRACE)?;
        Some(match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with status {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        })
    }

    fn restart(&mut self) -> io::Result<UnixStream> {
        self.restart_within(RESTART_TIME)
    }
}

impl Drop for ChildProgram {
    fn drop(&mut self) {
        if !self.end() {
            self.log.warn(format_args!("{}", self.stuck()));
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
mod tests;
