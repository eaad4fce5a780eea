//! The agent: runs what the harness asks for, many programs at once.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tests::harness::protocol::{Frame, Kind};

use crate::CommandError;

/// How long output may come after the end of a program whose children keep its pipes open.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(300);

/// As often as this it may come again, as long as there is some that nobody has read: on a busy machine it
/// isn't read sooner.
const OUTPUT_LOOKS: usize = 100;

/// What is kept of a running program.
struct Running {
    pid: i32,
    /// Its input; dropping it ends that.
    input: Option<Sender<Vec<u8>>>,
}

/// The port, written to by many threads.
#[derive(Clone)]
struct Port {
    port: Arc<Mutex<File>>,
    running: Arc<Mutex<BTreeMap<u32, Running>>>,
}

/// Serves the harness at `port` until that is closed.
pub(crate) fn serve(port: &Path) -> Result<(), CommandError> {
    let mut reader = OpenOptions::new().read(true).write(true).open(port)?;
    let port = Port { port: Arc::new(Mutex::new(reader.try_clone()?)), running: Arc::default() };
    port.send(Frame::new(Kind::Hello, 0, []))?;
    loop {
        let frame = Frame::read_from(&mut reader)?;
        let number = frame.process;
        match frame.kind {
            Kind::Start | Kind::StartOnTerminal => {
                if let Err(error) = port.start(&frame) {
                    port.send(Frame::new(Kind::Error, number, format!("can't start: {error}\n")))?;
                    port.send(Frame::new(Kind::Exited, number, 127_u32.to_le_bytes()))?;
                }
            }
            Kind::Input => {
                if let Some(Running { input: Some(input), .. }) = port.running().get(&number) {
                    // It no longer reads: that is its business.
                    let _ = input.send(frame.payload);
                }
            }
            Kind::EndOfInput => {
                if let Some(running) = port.running().get_mut(&number) {
                    running.input = None;
                }
            }
            Kind::Signal => {
                let signal = i32::from(frame.payload.first().copied().unwrap_or_default());
                if let Some(running) = port.running().get(&number) {
                    // SAFETY: no memory is involved; the process has not been waited for, since
                    // it is in the table, so that the id is its own.
                    unsafe { libc::kill(running.pid, signal) };
                }
            }
            // The rest is what agents say.
            _ => return Err(format!("{:?} is not for an agent", frame.kind).into()),
        }
    }
}

impl Port {
    fn send(&self, frame: Frame) -> io::Result<()> {
        frame.write_to(&mut *self.port.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u32, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a program, and the threads that carry its input and output.
    fn start(&self, frame: &Frame) -> io::Result<()> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(String::from_utf8_lossy(&frame.payload).as_ref());
        let number = frame.process;
        let (sender, receiver) = mpsc::channel();
        let (done, output_ended) = mpsc::channel();
        let (child, pipes) = if frame.kind == Kind::StartOnTerminal {
            let (mut child, terminal) = on_terminal(&mut command)?;
            let (input_ended, feeder) = io::pipe()?;
            let output = UntilEndOfInput { output: terminal.try_clone()?, input_ended };
            self.register(number, &mut child, sender)?;
            forward_input((terminal, feeder), receiver, |(terminal, _)| terminal);
            self.forward_output(number, Kind::Output, output, done);
            (child, Vec::new())
        } else {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn()?;
            self.register(number, &mut child, sender)?;
            let mut pipes: Vec<OwnedFd> = Vec::new();
            if let (Some(input), Some(output), Some(error)) =
                (child.stdin.take(), child.stdout.take(), child.stderr.take())
            {
                pipes.extend(
                    [output.as_fd(), error.as_fd()]
                        .map(|pipe| pipe.try_clone_to_owned())
                        .into_iter()
                        .flatten(),
                );
                forward_input(input, receiver, |input| input);
                self.forward_output(number, Kind::Output, output, done.clone());
                self.forward_output(number, Kind::Error, error, done);
            }
            (child, pipes)
        };
        self.wait(number, child, pipes, output_ended);
        Ok(())
    }

    fn register(&self, number: u32, child: &mut Child, input: Sender<Vec<u8>>) -> io::Result<()> {
        let pid = child.id();
        let running = Running { pid: pid.cast_signed(), input: Some(input) };
        self.running().insert(number, running);
        self.send(Frame::new(Kind::Started, number, pid.to_le_bytes()))
    }

    /// Carries output to the harness until it ends; `done` is dropped then.
    fn forward_output(
        &self,
        number: u32,
        kind: Kind,
        mut from: impl Read + Send + 'static,
        done: Sender<()>,
    ) {
        let port = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            // A terminal whose last user is gone answers with an error: that is its end.
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                let bytes = buffer.get(..length).unwrap_or_default();
                if port.send(Frame::new(kind, number, bytes)).is_err() {
                    break;
                }
            }
            drop(done);
        });
    }

    /// Waits for the end of a program and of its output, which comes by these pipes, and reports it.
    fn wait(&self, number: u32, mut child: Child, pipes: Vec<OwnedFd>, output_ended: Receiver<()>) {
        let port = self.clone();
        thread::spawn(move || {
            let pid = child.id().cast_signed();
            // Held from before the id is freed until the entry is gone, so that no signal can
            // go to a stranger that got the same id.
            wait_for_zombie(pid);
            let mut running = port.running();
            let status = child.wait();
            running.remove(&number);
            drop(running);
            for _ in 0..OUTPUT_LOOKS {
                let ended = output_ended.recv_timeout(OUTPUT_TIMEOUT);
                if ended != Err(RecvTimeoutError::Timeout) || !pipes.iter().any(has_output) {
                    break;
                }
            }
            let status = status.map_or(255, code);
            // Without the harness there is nobody to tell.
            let _ = port.send(Frame::new(Kind::Exited, number, status.to_le_bytes()));
        });
    }
}

/// Whether a pipe holds what nobody has read yet.
fn has_output(pipe: &OwnedFd) -> bool {
    let mut watched = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the one structure is writable for the duration of the call.
    let found = unsafe { libc::poll(&raw mut watched, 1, 0) };
    found > 0 && watched.revents & libc::POLLIN != 0
}

/// Blocks until process `pid` has ended, without reaping it.
fn wait_for_zombie(pid: i32) {
    loop {
        // SAFETY: all zeroes is a valid siginfo_t, which the call fills in.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = pid.cast_unsigned();
        // SAFETY: `info` is writable for the duration of the call.
        let result =
            unsafe { libc::waitid(libc::P_PID, id, &raw mut info, libc::WEXITED | libc::WNOWAIT) };
        let interrupted = io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if result == 0 || !interrupted {
            return;
        }
    }
}

/// A shell's notion of an exit status.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Writes what arrives to a program's input, which is in `held`; drops that when there will be no
/// more.
fn forward_input<T: Send + 'static, W: Write + 'static>(
    mut held: T,
    receiver: Receiver<Vec<u8>>,
    input: fn(&mut T) -> &mut W,
) {
    thread::spawn(move || {
        for bytes in receiver {
            if input(&mut held).write_all(&bytes).is_err() {
                break;
            }
        }
    });
}

/// The output of a terminal, which ends when its input does: only when nobody holds the outer
/// side any more is a terminal hung up.
struct UntilEndOfInput {
    output: File,
    /// Readable (as ended) once the other end is dropped.
    input_ended: PipeReader,
}

impl Read for UntilEndOfInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let watch = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut watched = [watch(self.output.as_raw_fd()), watch(self.input_ended.as_raw_fd())];
        // SAFETY: the array is writable for the duration of the call, and 2 is its length.
        if unsafe { libc::poll(watched.as_mut_ptr(), 2, -1) } < 0 {
            return Err(io::Error::last_os_error());
        }
        match watched {
            [_, ended] if ended.revents != 0 => Ok(0),
            _ => self.output.read(buffer),
        }
    }
}

/// Starts `command` as the leader of a session whose terminal is a new pty; returns the pty's
/// other side.
fn on_terminal(command: &mut Command) -> io::Result<(Child, File)> {
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut here, mut there) = (-1, -1);
    // SAFETY: both descriptors are written on success; a null name and null settings are allowed,
    // and `size` outlives the call.
    let result = unsafe {
        libc::openpty(
            &raw mut here,
            &raw mut there,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so that both descriptors are new and ours.
    let (here, there) = unsafe { (OwnedFd::from_raw_fd(here), OwnedFd::from_raw_fd(there)) };
    close_on_exec(&here)?;
    close_on_exec(&there)?;
    command.stdin(there.try_clone()?).stdout(there.try_clone()?).stderr(there);
    // SAFETY: setsid and ioctl are allowed between fork and exec, and use no memory of ours.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    // Our copies of the terminal's inner side must go, or its end would never be seen.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((child, File::from(here)))
}

fn close_on_exec(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open; only its flags change.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
