//! `cargo model shell`: a model host to look around in.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::process::ExitCode;

use crate::artifacts::Artifacts;
use crate::harness::{Board, Launch, PLATFORM_DMA};

/// Boots a host whose console is this terminal, and waits for its end.
///
/// # Errors
///
/// Standard input or output is no terminal; QEMU can't be run, or fails.
pub fn run(artifacts: &Artifacts) -> Result<ExitCode, Box<dyn Error>> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(
            "the model's shell needs a terminal\n  help: cargo model demo runs without".into()
        );
    }
    let _terminal = Settings::save();
    let mut board = Board::with(artifacts).stock();
    let mut greeting = greeting();
    if artifacts.debian.is_some() {
        board = board.debian().device("nvme,drive=debian,serial=debian");
        greeting += &debian();
    }
    let status = board.file("motd", greeting).attach()?;
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(format!("QEMU ended with {status}").into())
}

/// What the host says first.
fn greeting() -> String {
    let device = PLATFORM_DMA[0];
    let model = Launch::model().with(&format!("--vfio-platform {device}")).arguments();
    let stock = Launch::stock().arguments();
    format!(
        "
This is the model host. Ctrl-A x switches it off; so does leaving the shell. Ctrl-A Ctrl-A x ends
a guest.

Give a DMA controller to VFIO, then start a guest that owns it (in the guest: dmatest 50 16384):
  strait device bind {device}
  strait {model}
Debian's own kernel:
  strait {stock}
Kernels and initrds are in /k; `strait --help`, `agent` and busybox have more.

"
    )
}

/// What it says of the disk with a Debian system.
fn debian() -> String {
    let launch = Launch::debian().with("--block /dev/nvme0n1");
    format!(
        "\
A Debian system on a disk of its own (root has no password; poweroff ends it):
  strait {}

",
        launch.arguments()
    )
}

/// The terminal's settings, put back when dropped: QEMU may be killed before it does so.
struct Settings(libc::termios);

impl Settings {
    fn save() -> Option<Self> {
        let mut settings = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the structure it is given, or fails.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call succeeded, so that the structure is filled.
        Some(Self(unsafe { settings.assume_init() }))
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        // SAFETY: the settings are those that tcgetattr gave. A terminal that is gone needs none.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const self.0) };
    }
}
