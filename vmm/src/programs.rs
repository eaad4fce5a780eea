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
use devices::vhost_user::Program;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::error::Error;
use crate::shared_memory;

/// How long the end of a program is waited for, once its connection is closed, before it is killed; and
/// when its connection was closed by the program, until its status is there.
const GRACE: Duration = Duration::from_millis(300);

/// How long the restart of a program may take.
const RESTART_TIME: Duration = Duration::from_secs(5);

/// A program that ends sooner than this after its start isn't started again.
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
    since: Instant,
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
        let (status, (ours, theirs)) = shared().inspect_err(|_: &io::Error| kill(&mut child))?;
        let ended = open_process(child.id()).ok();
        let program = ProgramHandle { status, restarts: theirs };
        let (restarts, since) = (Some(ours), Instant::now());
        let served = Served { stream, file, program };
        Ok((served, Self { child, since, status, ended, restarts }))
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
    /// Those of `start`.
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
        self.end();
        let started = (self.since.elapsed() >= LIFE).then(start).transpose();
        let stream = match &started {
            Ok(Some(started)) => {
                self.status.store(0, Ordering::Release);
                vec![started.stream.as_raw_fd()]
            }
            _ => Vec::new(),
        };
        // Fails only if the other process has ended, which tells more.
        let _ = restarts.send_with_fds(&[asked.as_slice()], &stream);
        self.restarts = Some(restarts);
        if let Some(Started { child, .. }) = started? {
            self.ended = open_process(child.id()).ok();
            (self.child, self.since) = (child, Instant::now());
        }
        Ok(())
    }

    /// Leaves it to the parent, which has it.
    pub fn leave(mut self) {
        (self.ended, self.restarts) = (None, None);
        std::mem::forget(self);
    }

    /// Waits for its end, and kills it if it doesn't come.
    fn end(&mut self) {
        if self.wait(GRACE).is_none() {
            kill(&mut self.child);
        }
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

fn kill(child: &mut Child) {
    // Both fail only if it has ended.
    let _ = child.kill();
    let _ = child.wait();
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
        (&self.restarts).write_all(&[0])?;
        let end = Instant::now() + RESTART_TIME;
        // A wait that has failed has found nothing.
        while !poll::wait(&mut [poll::readable(self.restarts.as_raw_fd())], Some(RESTART_TIME))
            .is_ok_and(|ready| ready > 0)
        {
            if Instant::now() >= end {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let (read, file) = self.restarts.recv_with_fd(&mut [0])?;
        match (read, file) {
            (0, _) => Err(io::ErrorKind::BrokenPipe.into()),
            (_, Some(file)) => Ok(OwnedFd::from(file).into()),
            (_, None) => Err(io::Error::other("it ends again and again, or can't be executed")),
        }
    }
}

impl Drop for ChildProgram {
    fn drop(&mut self) {
        self.end();
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

    fn start(script: &str) -> Started {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("FD", theirs.as_raw_fd().to_string());
        let child = spawn(&mut command, &theirs).unwrap();
        Started { stream: ours, file: "/bin/sh".into(), child }
    }

    fn program(script: &str) -> (Served, ChildProgram) {
        ChildProgram::new(start(script)).unwrap()
    }

    #[test]
    fn a_program_has_the_descriptor_and_ends_with_its_handle() {
        let (mut served, program) = program("exec sleep 1000");
        let pid = program.child.id();
        drop(program);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        // What it had is closed.
        assert_eq!(served.stream.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn how_a_program_ended_is_told() {
        for (script, expected) in [
            // It has the descriptor.
            ("test -S /proc/self/fd/$FD && exit 3", Some("ended with status 3")),
            ("kill -9 $$", Some("was ended by signal 9")),
            ("exec sleep 1000", None),
        ] {
            let (mut served, mut program) = program(script);
            let telling = thread::spawn(move || {
                let since = Instant::now();
                while since.elapsed() < Duration::from_secs(1) && program.descriptors()[0] >= 0 {
                    program.tell();
                }
            });
            assert_eq!(served.program.ending().as_deref(), expected, "{script}");
            telling.join().unwrap();
        }
    }

    /// Waits until a program is to be started again, or nobody can ask for that.
    fn await_request(program: &ChildProgram) {
        let [_, fd] = program.descriptors();
        let mut ready = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, as the count says.
        assert_eq!(unsafe { libc::poll(&raw mut ready, 1, 60_000) }, 1);
    }

    #[test]
    fn a_program_is_started_again_unless_it_ends_at_once() {
        let (mut served, mut program) = program("exec sleep 1000");
        for (age, is_started) in [(LIFE, true), (Duration::ZERO, false)] {
            let pid = program.child.id();
            program.since = Instant::now().checked_sub(age).unwrap();
            // Nobody has asked for it.
            program.serve_restart(|| unreachable!()).unwrap();
            let asking = thread::spawn(move || (served.program.restart(), served));
            await_request(&program);
            program.serve_restart(|| Ok(start("exec sleep 1000"))).unwrap();
            let (restarted, then) = asking.join().unwrap();
            served = then;
            assert!(!Path::new(&format!("/proc/{pid}")).exists());
            assert_eq!(program.child.id() != pid, is_started);
            assert_eq!(restarted.is_ok(), is_started);
            if let Ok(mut stream) = restarted {
                // The other end is the new program's.
                stream.set_nonblocking(true).unwrap();
                let error = stream.read(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            }
        }
        // It is asked for nothing by who has ended. What other tests are about to execute has copies of all
        // descriptors until then.
        drop(served);
        await_request(&program);
        program.serve_restart(|| unreachable!()).unwrap();
        assert_eq!(program.descriptors()[1], -1);
    }

    #[test]
    fn programs_are_found_by_name() {
        assert_eq!(find("sh", &["/no/such/directory", "/bin"]), Some("/bin/sh".into()));
        assert!(find("sh", &[]).is_some());
        assert_eq!(find("no-such-program", &["/bin"]), None);
        assert_eq!(find("etc", &["/"]), None);
    }
}
