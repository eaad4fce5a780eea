//! The Linux on the modelled machine, as a test uses it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::calls;
use super::channel::Channel;
use super::deadline::Deadline;
use super::failure::Failure;
use super::process::Process;
use super::protocol::Kind;
use super::qemu::Qemu;
use super::transcript::Transcript;
use super::uart::Uart;

/// A running model host. It is switched off when dropped.
pub struct Host {
    qemu: Option<Qemu>,
    channel: Arc<Channel>,
    console: UnixStream,
    processes: AtomicU32,
    uart: Mutex<Option<Uart>>,
}

/// What a command answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its exit status, or 128 and the signal that killed it.
    pub status: i32,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

impl Host {
    pub(super) fn new(
        qemu: Qemu,
        channel: Arc<Channel>,
        console: UnixStream,
        uart: Option<Uart>,
    ) -> Self {
        let (processes, uart) = (AtomicU32::new(1), Mutex::new(uart));
        Self { qemu: Some(qemu), channel, console, processes, uart }
    }

    pub(super) fn wait_until_up(&self, deadline: Deadline) -> Result<(), Failure> {
        self.channel.wait(deadline, "the model host to boot", |state| state.ready.then_some(Ok(())))
    }

    /// Runs a shell command on the host and returns what it answered, whatever its status.
    ///
    /// # Errors
    ///
    /// It doesn't end in time, or the host is gone.
    pub fn run(&self, command: &str) -> Result<Answer, Failure> {
        let process = self.start_as("sh", command)?;
        let status = process.exit_status()?;
        Ok(Answer { status, output: process.output(), errors: process.errors() })
    }

    /// Runs a shell command that must succeed and returns its standard output.
    ///
    /// # Errors
    ///
    /// It fails, or doesn't end in time.
    pub fn sh(&self, command: &str) -> Result<String, Failure> {
        let answer = self.run(command)?;
        if answer.status != 0 {
            let said = format!("{}{}", answer.output, answer.errors);
            return Err(self.transcript().failure(format!(
                "`{command}` on the host ended with status {}:\n{said}",
                answer.status
            )));
        }
        Ok(answer.output)
    }

    /// Waits until a shell condition holds on the host.
    ///
    /// # Errors
    ///
    /// It still doesn't after 300 s (times `STRAIT_TIMEOUT_SCALE`).
    pub fn until(&self, condition: &str) -> Result<(), Failure> {
        let process = self.start_as("until", &format!("until {condition}; do sleep 0.05; done"))?;
        process.exit_status().map(|_| ())
    }

    /// Starts a shell command beside others, its input and output pipes.
    ///
    /// # Errors
    ///
    /// The host is gone.
    pub fn start(&self, command: &str) -> Result<Process, Failure> {
        self.start_as(&self.next_name("job"), command)
    }

    /// Starts strait with these arguments, its input and output pipes, standard error joined to
    /// the output.
    ///
    /// # Errors
    ///
    /// The host is gone.
    pub fn strait(&self, arguments: &str) -> Result<Process, Failure> {
        self.start_as(&self.next_name("strait"), &format!("exec strait {arguments} 2>&1"))
    }

    /// Starts a shell command on a terminal of its own. What it writes just before it ends may be
    /// lost, since the kernel hangs a terminal up when its session's leader is gone.
    ///
    /// # Errors
    ///
    /// The host is gone.
    pub fn on_terminal(&self, command: &str) -> Result<Process, Failure> {
        let name = self.next_name("tty");
        Process::start(&self.channel, &name, command, Kind::StartOnTerminal)
    }

    /// The other end of the assignable UART's wire.
    ///
    /// # Errors
    ///
    /// The board has none ([`super::Board::uart`]), or somebody has it already.
    pub fn uart(&self) -> Result<Uart, Failure> {
        let uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner).take();
        uart.ok_or_else(|| self.transcript().failure("the board has no UART that is free"))
    }

    /// What the host's serial console has said.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.channel.state().console).into_owned()
    }

    /// Types on the host's serial console, for magic SysRq and the like.
    ///
    /// # Errors
    ///
    /// The host is gone.
    pub fn type_on_console(&self, text: &str) -> Result<(), Failure> {
        (&self.console).write_all(text.as_bytes()).map_err(|error| {
            self.transcript().failure(format!("can't type on the host's console: {error}"))
        })
    }

    /// Presses the power button of the machine, which is line 3 of its PL061, and lets it go 100 ms later.
    ///
    /// # Errors
    ///
    /// The host is gone.
    pub fn press_power_button(&self) -> Result<(), Failure> {
        self.monitor("system_powerdown")
    }

    /// Has QEMU's monitor execute a command of its human interface, at some time.
    ///
    /// # Errors
    ///
    /// The host is gone.
    pub fn monitor(&self, command: &str) -> Result<(), Failure> {
        let told = self.qemu.as_ref().map_or(Ok(()), |qemu| qemu.command(command));
        told.map_err(|error| self.transcript().failure(format!("QEMU's monitor: {error}")))
    }

    /// Everything said so far.
    pub fn transcript(&self) -> &Transcript {
        self.channel.transcript()
    }

    pub(super) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    pub(super) fn next_name(&self, kind: &str) -> String {
        format!("{kind}{}", self.processes.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn start_as(&self, name: &str, command: &str) -> Result<Process, Failure> {
        Process::start(&self.channel, name, command, Kind::Start)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        calls::keep(self);
        let cpu_time = self.qemu.as_ref().map(Qemu::cpu_time).unwrap_or_default();
        drop(self.qemu.take());
        self.channel.join();
        self.transcript().end(cpu_time);
    }
}
