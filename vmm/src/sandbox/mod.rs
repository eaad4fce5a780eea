//! The sandbox: what the process gives up before the guest's first instruction, so that a guest or a
//! server that breaks strait has nothing but what that guest was given.

mod privileges;

use std::io;

use crate::cli::SandboxMode;
use crate::error::Error;

/// The sandbox of a run.
pub struct Sandbox {
    mode: SandboxMode,
}

impl Sandbox {
    /// One of this mode.
    pub fn new(mode: SandboxMode) -> Self {
        Self { mode }
    }

    /// Gives up, for good, what the run doesn't need from here on. Called by the main thread when
    /// everything is opened, pinned and armed, before the first vCPU's thread is started, which inherits
    /// it; what is opened afterwards is opened by descriptors that are there, or not at all.
    ///
    /// # Errors
    ///
    /// The host refuses what every host grants.
    pub fn enter(&self) -> Result<(), Error> {
        if self.mode == SandboxMode::Off {
            return Ok(());
        }
        privileges::gain_no_new().map_err(|e| refused("privileges can't be given up", &e))
    }
}

#[cold]
fn refused(what: &str, e: &io::Error) -> Error {
    Error::new(format!("the sandbox: {what}: {e}")).help("--sandbox off runs without it")
}
