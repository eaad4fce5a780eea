//! A guest that is a Debian system.

use super::failure::Failure;
use super::guest::{Guest, Launch};
use super::host::Host;
use super::process::Process;

/// How long such a guest may take for anything, in seconds, and its units for their start: they give up
/// after 90 of its seconds else, in which it does little on a busy machine. On a machine that does
/// nothing else it takes a quarter of a minute from its start to the prompt for a login.
const TIMEOUT: u64 = 600;

/// What a shell on the console is told: it shall answer commands and nothing else.
const QUIET: &str = "stty -echo; PS1= PS2= exec sh -i\n";

/// What its kernel is told, beside where its root is: that a terminal of this name is a simple one, and to
/// be patient.
pub(super) fn parameters(terminal: &str) -> String {
    format!(
        "TERM=dumb systemd.tty.term.{terminal}=dumb systemd.default_device_timeout_sec={TIMEOUT} \
         systemd.default_timeout_start_sec={TIMEOUT}"
    )
}

impl Launch {
    /// A Debian system, whose root file system is on whichever of the guest's disks it is; the board
    /// needs [`super::Board::debian`].
    pub fn debian() -> Self {
        Self::model()
            .kernel("/k/debian")
            .initrd("/k/debian.cpio")
            .memory("512M")
            .does("login")
            .cmdline("root=LABEL=debian rw")
            .cmdline(&parameters("ttyS0"))
    }
}

impl Host {
    /// Mounts the disk of a Debian system, of this name on the host, on `/debian`, with these options
    /// of mount(8), and lets the host have its programs, such as virtiofsd, where Debian has them.
    ///
    /// # Errors
    ///
    /// There is no such disk.
    pub fn mount_debian(&self, disk: &str, options: &str) -> Result<(), Failure> {
        self.until(&format!("[ -e {disk} ]"))?;
        self.sh(&format!(
            "mkdir -p /debian /etc /usr && mount -t ext4 -o {options} {disk} /debian && \
             ln -s /debian/usr/lib /debian/usr/libexec /usr && ln -s usr/lib /lib && \
             ln -s /debian/etc/passwd /etc"
        ))?;
        Ok(())
    }

    /// Starts a Debian system, waits until it offers a login, and logs in on its serial console.
    ///
    /// # Errors
    ///
    /// It doesn't come up.
    pub fn log_in(&self, launch: &Launch) -> Result<Guest, Failure> {
        let name = self.next_name("debian");
        let command = format!("exec strait {} 2>&1", launch.arguments());
        let mut process = self.start_as(&name, &command)?.timeout(TIMEOUT);
        process.wait_for("login: ")?;
        process.send("root\n")?;
        Guest::at_prompt(process)
    }
}

impl Guest {
    /// The Debian system of this strait, whose console has, or will have, a shell of root's.
    ///
    /// # Errors
    ///
    /// It doesn't come up.
    pub fn at_prompt(process: Process) -> Result<Self, Failure> {
        let mut process = process.timeout(TIMEOUT);
        process.wait_for("# ")?;
        process.send(QUIET)?;
        let mut guest = Self::of(process);
        guest.sh("true")?;
        Ok(guest)
    }

    /// Has a Debian system shut down, and returns strait's exit status.
    ///
    /// # Errors
    ///
    /// It doesn't end in time.
    pub fn shut_down(mut self) -> Result<i32, Failure> {
        self.begin("systemctl poweroff")?;
        self.exit_status()
    }
}
