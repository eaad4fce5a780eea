//! What the guest is handed at boot: its device tree, kernel, initrd and command line.
//!
//! The ground floor of strait: nothing here knows KVM or VFIO, and the only I/O is reading files.
//! Addresses are guest physical addresses (GPA), sizes are bytes.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]
#![deny(missing_docs)]

pub mod cmdline;
pub mod fdt;
pub mod file;
pub mod firmware;
pub mod format;
pub mod help;
pub mod initrd;
pub mod kernel;
pub mod layout;
pub mod order;
pub mod size;
