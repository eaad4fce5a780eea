//! The system tests: strait on a model host. `cargo model test` runs them; `cargo model test pci::` only
//! those of a module.
//!
//! They are one program, so that the harness is linked once, and the next test starts when a CPU is
//! free, whichever module it is in.

mod accidents;
mod block;
mod boot;
mod broken_queues;
mod check;
mod clusters;
mod console;
mod console_patterns;
mod containers;
mod control;
mod debian;
mod device;
mod device_tree;
mod endings;
mod errors;
mod exhaustion;
mod firmware;
mod gdb;
mod gdb_multiarch;
mod golden;
mod inherited;
mod isolation;
mod kconfig;
mod kernels;
mod kexec;
mod labs;
mod large_pages;
mod matrix;
mod memory;
mod mmio;
mod model;
mod net;
mod newest_host;
mod output;
mod package;
mod pci;
mod pci_host;
mod platform;
mod resources;
mod restart;
mod run;
mod sandbox;
mod scmi;
mod seccomp;
mod self_test;
mod several_guests;
mod soc;
mod systemd;
mod terminal;
mod tools;
mod trace;
mod uart;
mod vfio_user;
mod vhost_devices;
mod vhost_user;
mod virtio;
mod vsock;
