//! The QEMU process under a model host.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::failure::Failure;
use super::transcript::Transcript;

/// A running QEMU. It dies when this is dropped, and when the process (or the thread) that
/// started it dies.
pub(super) struct Qemu {
    child: Child,
    /// Its monitor, which takes commands of QEMU's human interface. What it answers is left there.
    monitor: UnixStream,
}

impl Qemu {
    /// Runs `command`, which inherits `files` under the numbers they have here.
    pub(super) fn start(
        command: &mut Command,
        files: &[RawFd],
        transcript: &Arc<Transcript>,
    ) -> Result<Self, Failure> {
        let (monitor, end) = socket_pair()?;
        command.args(chardev("monitor", &end)).args(["-mon", "chardev=monitor,mode=readline"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        pass_files(command, &[files, &[end.as_raw_fd()]].concat());
        let mut child = command.spawn().map_err(|error| cannot_run(command, &error))?;
        if let Some(errors) = child.stderr.take() {
            let transcript = Arc::clone(transcript);
            // Ends with QEMU, whose end of the pipe is the only one.
            std::thread::spawn(move || {
                for line in BufReader::new(errors).lines().map_while(Result::ok) {
                    transcript.record("qemu", format!("{line}\n").as_bytes());
                }
            });
        }
        Ok(Self { child, monitor })
    }

    /// Has the monitor execute a command, at some time.
    pub(super) fn command(&self, command: &str) -> io::Result<()> {
        (&self.monitor).write_all(format!("{command}\n").as_bytes())
    }

    /// The CPU time that it has taken, or nothing where `/proc` doesn't say.
    pub(super) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        // SAFETY: the call has no memory behind it.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        stat.ok().zip(u32::try_from(ticks).ok()).map_or(Duration::ZERO, |(stat, ticks)| {
            Duration::from_secs(cpu_ticks(&stat)).checked_div(ticks).unwrap_or_default()
        })
    }
}

/// The clock ticks that a process took for itself and in the kernel: fields 14 and 15 of `/proc/PID/stat`
/// (proc(5)), whose second, a name in brackets, may have any character.
fn cpu_ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    after_name.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum()
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` on this process's standard input and output to its end; it inherits `files`.
pub(super) fn run(command: &mut Command, files: &[RawFd]) -> Result<ExitStatus, Failure> {
    pass_files(command, files);
    command.status().map_err(|error| cannot_run(command, &error))
}

/// Lets `command` inherit `files` under the numbers they have here, and die with this thread.
fn pass_files(command: &mut Command, files: &[RawFd]) {
    let files = files.to_vec();
    let parent = std::process::id();
    // SAFETY: the closure only makes system calls, which is all that is allowed between fork and
    // exec.
    unsafe { command.pre_exec(move || prepare(parent, &files)) };
}

fn cannot_run(command: &Command, error: &io::Error) -> Failure {
    Failure::new(format!("can't run {}: {error}", command.get_program().display()))
}

/// Between fork and exec: dies with the parent, keeps `files` open.
fn prepare(parent: u32, files: &[RawFd]) -> io::Result<()> {
    // SAFETY: these arguments have no memory behind them.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before the line above.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::from(io::ErrorKind::Interrupted));
    }
    for &file in files {
        // SAFETY: the caller owns the descriptor; the call touches nothing but its flags.
        if unsafe { libc::fcntl(file, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A file in memory that holds `bytes`: nothing of it can be left behind.
pub(super) fn memory_file(bytes: &[u8]) -> io::Result<File> {
    // SAFETY: the name is a C string; the call returns a descriptor of ours or -1.
    let fd = unsafe { libc::memfd_create(c"initramfs".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(bytes)?;
    Ok(file)
}

/// Two connected sockets: ours, and the one QEMU is to inherit.
pub(super) fn socket_pair() -> Result<(UnixStream, UnixStream), Failure> {
    UnixStream::pair().map_err(|error| Failure::new(format!("can't make a socket pair: {error}")))
}

/// QEMU's options for a character device that is an inherited socket.
pub(super) fn chardev(id: &str, socket: &UnixStream) -> [String; 2] {
    ["-chardev".into(), format!("socket,id={id},fd={}", socket.as_raw_fd())]
}

#[cfg(test)]
mod tests {
    use super::cpu_ticks;

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let fields = "R 1 2 3 4 5 6 7 8 9 10 120 34 1000 1000 20 0 5 0";
        assert_eq!(cpu_ticks(&format!("42 (qemu) {fields}")), 154);
        assert_eq!(cpu_ticks(&format!("42 (a) b 7 8) {fields}")), 154);
        assert_eq!(cpu_ticks("nonsense"), 0);
    }
}
