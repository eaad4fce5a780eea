//! The system model and what is tested on it.
//!
//! - [`setup`] makes what the model needs: QEMU, kernels, busybox, strait itself.
//! - [`artifacts`] names what it made; everything that runs the model starts from there.
//! - [`harness`] boots a model host and runs scenarios on it.
//! - [`suite`] runs every test, [`mod@bench`] measures, [`demo`] shows the main job, [`shell`] is for
//!   looking around, [`manual`] makes the man page and completions, [`package`] a Debian package,
//!   [`link_order`] the order of functions in strait, [`calls`] what its threads ask the kernel for.

#[cfg(feature = "tool")]
pub mod artifacts;
#[cfg(feature = "tool")]
pub mod bench;
#[cfg(feature = "tool")]
pub mod calls;
#[cfg(feature = "tool")]
pub mod demo;
#[cfg(feature = "tool")]
pub mod harness;
#[cfg(feature = "tool")]
pub mod link_order;
#[cfg(feature = "tool")]
pub mod manual;
#[cfg(feature = "tool")]
pub mod package;
#[cfg(feature = "tool")]
pub mod setup;
#[cfg(feature = "tool")]
pub mod shell;
#[cfg(feature = "tool")]
pub mod suite;

/// What of the harness is in the model too.
#[cfg(not(feature = "tool"))]
pub mod harness {
    pub mod protocol;
}
