//! The system model and what is tested on it.
//!
//! - [`setup`] makes what the model needs: QEMU, kernels, busybox, strait itself.
//! - [`artifacts`] names what it made; everything that runs the model starts from there.
//! - [`harness`] boots a model host and tells stories on it.
//! - [`suite`] runs every test, [`bench`] measures, [`demo`] shows the main job, [`shell`] is for
//!   looking around.

pub mod artifacts;
pub mod bench;
pub mod demo;
pub mod harness;
pub mod setup;
pub mod shell;
pub mod suite;
