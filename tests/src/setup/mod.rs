//! Makes what the system model needs, and keeps it in a cache.
//!
//! Debian's archive gives the sources of QEMU and of the host's kernel, an unmodified kernel and
//! busybox; the clone gives strait and the test agent. [`run`] makes what is missing, everything at
//! once, and returns where it lies. On a distribution that isn't Debian's kin a person brings the
//! parts along by [`Options`].

mod archive;
mod binaries;
mod board_dtbs;
mod builder;
mod cache;
pub mod clean;
mod daemons;
mod debian;
mod error;
mod firmware;
pub mod fuzz;
mod kernels;
mod labs;
pub mod lint;
mod linux;
mod lock;
mod machine;
mod mirror;
mod modules;
mod options;
mod packages;
mod part;
mod process;
mod progress;
mod qemu;
mod signals;
mod stock;
pub mod test_tools;
mod toolchain;
pub mod workspace;

use std::path::PathBuf;

use builder::ModelBuilder;
use cache::LockedEntry;
use error::FileError;
use signals::SignalHandlers;

use crate::artifacts::Artifacts;

pub use error::Error;
pub use options::{Options, Purpose};
pub use toolchain::{TARGET, Toolchain};

/// A model that is ready. While it lives, `cargo model clean` leaves its parts alone.
pub struct Model {
    /// What it is started from.
    pub artifacts: Artifacts,
    /// The file that describes them for [`Artifacts::from_env`].
    pub description: PathBuf,
    /// Compiled device trees of boards, `VENDOR-BOARD.dtb` in this directory, for tests; none where
    /// the host's kernel with pages of 64 KiB was given, since they come of its sources.
    pub boards: Option<PathBuf>,
    /// What built the clone, and can build more of it.
    pub toolchain: Toolchain,
    _held: Vec<LockedEntry>,
}

/// Makes the model as `purpose` needs it, as far as it isn't there.
///
/// # Errors
///
/// Something can't be had or built, or the person interrupts; see [`Error`].
pub fn run(options: &Options, purpose: Purpose) -> Result<Model, Error> {
    let _handlers = SignalHandlers::install().at("watch for signals to", "this process")?;
    ModelBuilder::new(options)?.model(purpose)
}

/// Builds strait and the test agent, and nothing else of the model; returns where strait lies.
///
/// # Errors
///
/// There is no toolchain for 64-bit Arm, or the build fails.
pub fn build(options: &Options) -> Result<PathBuf, Error> {
    let _handlers = SignalHandlers::install().at("watch for signals to", "this process")?;
    let (_, binaries) = ModelBuilder::new(options)?.clone_binaries()?;
    Ok(binaries.strait)
}
