//! The system tests: strait on a model host. `cargo model test` runs them; `cargo model test pci::` only
//! those of a module.
//!
//! They are one program, so that the harness is linked once, and the next test starts when a CPU is
//! free, whichever module it is in.

mod boot;
mod bridge;
mod check;
mod device;
mod errors;
mod fleet;
mod golden;
mod isolation;
mod kernel;
mod large_pages;
mod manual;
mod model;
mod node;
mod output;
mod package;
mod passed;
mod pci;
mod platform;
mod power;
mod terminal;
mod traps;
mod uart;
mod vfio_user;
