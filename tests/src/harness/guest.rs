//! A guest as a test uses it: through the serial console that strait gives it.

use std::fmt::Write as _;

use super::failure::Failure;
use super::host::Host;
use super::interrupts::Interrupts;
use super::process::Process;

/// What a guest's init says when it begins (`model/guest/init`).
const READY: &str = "GUEST READY: ";
/// What init does unless told otherwise.
const SHELL: &str = "shell";

/// A guest to be: the kernel and what its init does.
#[derive(Clone, Debug)]
pub struct Launch {
    kernel: String,
    /// The option, with a space behind it; nothing for none.
    initrd: String,
    action: String,
    cmdline: String,
    memory: String,
    program: String,
    arguments: String,
}

impl Launch {
    /// A guest with the host's kernel.
    pub fn model() -> Self {
        Self {
            kernel: "/k/model".into(),
            initrd: "--initrd /k/guest.cpio ".into(),
            action: SHELL.into(),
            cmdline: String::new(),
            memory: "256M".into(),
            program: "strait".into(),
            arguments: String::new(),
        }
    }

    /// A guest with Debian's kernel; the board needs [`super::Board::stock`].
    pub fn stock() -> Self {
        Self::model().kernel("/k/stock").initrd("/k/stock.cpio").memory("512M")
    }

    /// A guest with pages of 64 KiB; the board needs [`super::Board::large_pages`].
    pub fn large_pages() -> Self {
        Self::model().kernel("/k/large").initrd("/k/large.cpio").memory("512M")
    }

    /// What its init does instead of offering a shell: `poweroff`, `reset`, `panic`, `idle`,
    /// `busy`, or `count` (which prints some 6 KiB).
    #[must_use]
    pub fn does(mut self, action: &str) -> Self {
        action.clone_into(&mut self.action);
        self
    }

    /// Another file for the kernel, on the host.
    #[must_use]
    pub fn kernel(mut self, path: &str) -> Self {
        path.clone_into(&mut self.kernel);
        self
    }

    /// Another file for the initrd, on the host.
    #[must_use]
    pub fn initrd(mut self, path: &str) -> Self {
        self.initrd = format!("--initrd {path} ");
        self
    }

    /// No initrd.
    #[must_use]
    pub fn without_initrd(mut self) -> Self {
        self.initrd.clear();
        self
    }

    /// Adds to the guest kernel's command line.
    #[must_use]
    pub fn cmdline(mut self, parameters: &str) -> Self {
        let _ = write!(self.cmdline, " {parameters}");
        self
    }

    /// How much memory it has, as strait counts it.
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    /// How strait is run, such as by another user: the command before its arguments.
    #[must_use]
    pub fn program(mut self, command: &str) -> Self {
        command.clone_into(&mut self.program);
        self
    }

    /// Adds to strait's arguments.
    #[must_use]
    pub fn with(mut self, arguments: &str) -> Self {
        let _ = write!(self.arguments, " {arguments}");
        self
    }

    /// strait's arguments, as a shell takes them.
    pub fn arguments(&self) -> String {
        let Self { kernel, initrd, action, cmdline, memory, program: _, arguments } = self;
        format!(
            "run --kernel {kernel} {initrd}--memory {memory} \
             --cmdline 'console=ttyS0 quiet strait.do={action}{cmdline}'{arguments}"
        )
    }
}

/// How strait's messages begin.
const MESSAGES: [&str; 3] = ["strait: error: ", "strait: warn: ", "strait: info: "];

/// A strait whose guest offers a shell on its console.
pub struct Guest {
    process: Process,
    commands: u32,
}

impl Host {
    /// Starts a guest with the host's kernel, `arguments` added to strait's, and waits for its
    /// shell.
    ///
    /// # Errors
    ///
    /// It doesn't come up.
    pub fn guest(&self, arguments: &str) -> Result<Guest, Failure> {
        self.launch(&Launch::model().with(arguments))
    }

    /// Starts a guest and waits until its init has begun.
    ///
    /// # Errors
    ///
    /// It doesn't come up.
    pub fn launch(&self, launch: &Launch) -> Result<Guest, Failure> {
        let name = self.next_name("guest");
        let command = format!("exec {} {} 2>&1", launch.program, launch.arguments());
        let mut process = self.start_as(&name, &command)?;
        process.wait_for(&format!("{READY}{}", launch.action))?;
        process.wait_for("\n")?;
        let mut guest = Guest::of(process);
        if launch.action == SHELL {
            // The shell greets before it answers.
            guest.sh("true")?;
        }
        Ok(guest)
    }
}

impl Guest {
    /// The guest whose shell answers on the console of this strait.
    pub(super) fn of(process: Process) -> Self {
        Self { process, commands: 0 }
    }

    /// Runs a command in the guest and returns what it printed, whatever its status, and that.
    ///
    /// # Errors
    ///
    /// It doesn't end in time, or the guest ends.
    pub fn run(&mut self, command: &str) -> Result<(i32, String), Failure> {
        self.begin(command)?;
        self.finish()
    }

    /// Runs a command in the guest that must succeed, and returns what it printed.
    ///
    /// # Errors
    ///
    /// It fails, doesn't end in time, or the guest ends.
    pub fn sh(&mut self, command: &str) -> Result<String, Failure> {
        let (status, output) = self.run(command)?;
        if status == 0 {
            return Ok(output);
        }
        Err(self.failure(format!("`{command}` in the guest: status {status}, said:\n{output}")))
    }

    /// Begins a command in the guest; [`Self::finish`] waits for its end.
    ///
    /// # Errors
    ///
    /// The channel is broken.
    pub fn begin(&mut self, command: &str) -> Result<(), Failure> {
        self.process.channel().transcript().note(&format!("in {}: {command}", self.process.name()));
        self.commands += 1;
        // Quoted in two halves, so that an echo of it is not taken for the answer.
        let end = format!("printf '\\n%s%s %s.\\n' '<en' 'd{}>' $?", self.commands);
        self.process.send(format!("{{ {command}\n}} </dev/null; {end}\n"))
    }

    /// Waits for the end of the command begun last: its status and what it printed.
    ///
    /// # Errors
    ///
    /// It doesn't end in time, or the guest ends.
    pub fn finish(&mut self) -> Result<(i32, String), Failure> {
        let marker = format!("<end{}> ", self.commands);
        let output = self.process.wait_for(&marker)?;
        let status = self.process.wait_for(".")?;
        self.process.wait_for("\n")?;
        let status = status.trim_end_matches('.');
        let status = status
            .parse()
            .map_err(|_| self.failure(format!("the guest's shell answered {status:?}")))?;
        let output = output.strip_suffix(&marker).unwrap_or(&output);
        let output = without_messages(&output.replace("\r\n", "\n"));
        Ok((status, output.strip_suffix('\n').unwrap_or(&output).to_owned()))
    }

    /// Its log's lines with `word`. All of the log would take the console a second.
    ///
    /// # Errors
    ///
    /// The guest doesn't answer.
    pub fn log_of(&mut self, word: &str) -> Result<String, Failure> {
        self.sh(&format!("dmesg | grep '{word}' || true"))
    }

    /// The guest's interrupt counts.
    ///
    /// # Errors
    ///
    /// The guest doesn't answer.
    pub fn interrupts(&mut self) -> Result<Interrupts, Failure> {
        // Each character on the console is an exit: those that don't tell anything are left out.
        self.sh("grep -v -e IPI -e Err /proc/interrupts | tr -s ' '")
            .map(|text| Interrupts::parse(&text))
    }

    /// Resets the guest, and waits until it offers its shell again.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub fn begin_anew(&mut self) -> Result<(), Failure> {
        self.process.send("reboot -f\n")?;
        self.await_shell()
    }

    /// Waits until the guest, which is being reset, offers its shell again.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub fn await_shell(&mut self) -> Result<(), Failure> {
        self.process.wait_for(&format!("{READY}{SHELL}"))?;
        self.process.wait_for("\n")?;
        self.sh("true").map(|_| ())
    }

    /// Asks the guest to power off and returns strait's exit status.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub fn power_off(self) -> Result<i32, Failure> {
        self.process.send("poweroff -f\n")?;
        self.process.exit_status()
    }

    /// Gives everything that is waited for from now on this many seconds.
    #[must_use]
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.process = self.process.timeout(seconds);
        self
    }

    /// The strait that runs it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process id on the host.
    ///
    /// # Errors
    ///
    /// The agent doesn't say.
    pub fn pid(&self) -> Result<u32, Failure> {
        self.process.pid()
    }

    /// Waits for strait's end and returns its exit status.
    ///
    /// # Errors
    ///
    /// It doesn't end in time.
    pub fn exit_status(&self) -> Result<i32, Failure> {
        self.process.exit_status()
    }

    pub(super) fn failure(&self, reason: impl Into<String>) -> Failure {
        let reason = format!("{}: {}", self.process.name(), reason.into());
        self.process.channel().transcript().failure(reason)
    }
}

/// What a guest printed without strait's own messages, which come on the same console at any time, be it in
/// the middle of a line.
fn without_messages(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some((before, message)) = MESSAGES
        .iter()
        .filter_map(|start| rest.find(start))
        .min()
        .and_then(|at| rest.split_at_checked(at))
    {
        kept.push_str(before);
        rest = message.split_once('\n').map_or("", |(_, after)| after);
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::{Launch, without_messages};

    #[test]
    fn messages_are_no_output_of_a_command() {
        for (said, output) in [
            ("one\ntwo\n", "one\ntwo\n"),
            ("strait: warn: a disk\none\n", "one\n"),
            ("ffffstrait: info: a disk\n0000\n", "ffff0000\n"),
            ("onestrait: warn: a\nstrait: error: b\n\ntwo", "one\ntwo"),
            ("strait: 3\nonestrait: warn: a", "strait: 3\none"),
        ] {
            assert_eq!(without_messages(said), output, "{said:?}");
        }
    }

    #[test]
    fn a_launch_is_strait_s_command_line() {
        let launch = Launch::stock()
            .does("poweroff")
            .cmdline("mem=64M")
            .memory("1G")
            .with("--cpus 4")
            .with("--timeout 3");
        assert_eq!(
            launch.arguments(),
            "run --kernel /k/stock --initrd /k/stock.cpio --memory 1G --cmdline \
             'console=ttyS0 quiet strait.do=poweroff mem=64M' --cpus 4 --timeout 3"
        );
    }
}
