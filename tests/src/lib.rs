//! The system model and what is tested on it.
//!
//! - [`setup`] makes what the model needs: QEMU, kernels, busybox, strait itself.
//! - [`artifacts`] names what it made; everything that runs the model starts from there.

pub mod artifacts;
pub mod setup;
