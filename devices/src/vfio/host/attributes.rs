//! Writing sysfs attributes; a trait, so that what changes drivers is tested without a kernel.

mod child;

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long a driver may take to let a device go, or to take it. Those of disks and network cards
/// take a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an attribute couldn't be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The kernel said no.
    #[error(transparent)]
    Refused(#[from] io::Error),
    /// The kernel hasn't said anything.
    #[error("{0}")]
    Hung(Hung),
}

/// A write that doesn't come back: a process of its own waits for it in the kernel, which no signal
/// may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hung {
    /// That process.
    pub pid: u32,
    /// For how long it was waited, in seconds.
    pub seconds: u64,
    /// The functions of the kernel in which it waits, innermost first; empty where the kernel doesn't
    /// tell.
    pub within: Vec<String>,
}

impl fmt::Display for Hung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, seconds, within } = self;
        write!(f, "the kernel hasn't answered process {pid} for {seconds} s")?;
        match &within[..] {
            [] => Ok(()),
            within => write!(f, ", which waits in {}", within.join(" < ")),
        }
    }
}

/// Writes attributes.
pub trait Attributes {
    /// Writes `value` to the attribute at `path` by one system call, as sysfs wants it.
    ///
    /// # Errors
    ///
    /// As from `open(2)` and `write(2)`; what the driver core or a driver refuses with. Or no answer
    /// comes.
    fn write(&self, path: &Path, value: &str) -> Result<(), WriteError>;
}

/// The kernel's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sysfs;

impl Attributes for Sysfs {
    #[cold]
    fn write(&self, path: &Path, value: &str) -> Result<(), WriteError> {
        child::write(path, value, PATIENCE)
    }
}
