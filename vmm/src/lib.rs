//! strait: a KVM virtual machine monitor for device assignment on 64-bit Arm.
//!
//! Options become a plan, the plan a machine, the machine runs; nothing flows back. All but what calls
//! KVM builds and is tested on any machine; `main.rs` is the binary on top.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]
#![deny(missing_docs)]
// What only a run uses.
#![cfg_attr(not(target_arch = "aarch64"), allow(dead_code, unused_imports))]

mod alarm;
mod allocator;
mod assigned;
mod cli;
mod commands;
mod console;
mod console_timeout;
mod control;
mod device_monitor;
mod disks;
mod double_buffer;
mod error;
mod events;
mod exit_reason;
mod flash;
mod function_loss;
mod functions;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gdb;
mod host_clocks;
mod inherited_files;
mod interrupts;
mod junit;
mod kconfig;
mod kernel_files;
mod limits;
mod machined;
mod network;
mod notify;
mod outfile;
mod output;
mod passt;
mod pci_slots;
mod plan;
mod populate;
mod power_button;
mod programs;
mod reconnection;
mod sandbox;
mod scmi;
mod share;
mod shared_memory;
mod signals;
mod stats;
mod steering;
mod supervisor;
mod terminal;
mod toml_file;
mod trace;
mod tree;
mod unix_listener;
mod vfio_user;
mod vhost_user;
mod virtio;
mod waker;

use std::ffi::OsString;

/// Does what the command line asks for, the program's name first, and returns the exit status.
pub fn run(arguments: Vec<OsString>) -> u8 {
    output::report_panics();
    let parsed = cli::parse(lexopt::Parser::from_iter(arguments));
    let exit_status = match parsed.and_then(commands::execute) {
        Ok(exit_status) => exit_status,
        Err(error) => {
            output::say(&error.report());
            error.exit_status()
        }
    };
    output::finish();
    exit_status
}
