//! KVM and the CPU: the machine's memory map, guest RAM, vCPUs and interrupt controller.
//!
//! Each part describes itself to the guest: `node` functions return device tree nodes. What
//! calls KVM is there on arm64 only.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]
#![deny(missing_docs)]

mod cpu;
pub mod debug;
mod error;
#[cfg(target_arch = "aarch64")]
pub mod exit;
#[cfg(target_arch = "aarch64")]
pub mod gic;
#[cfg(target_arch = "aarch64")]
mod gsi_routing;
mod kvm_stats;
pub mod layout;
pub mod load_store;
mod memory;
pub mod smccc;
pub mod translation;
#[cfg(target_arch = "aarch64")]
mod vcpu;
#[cfg(target_arch = "aarch64")]
mod vm;

pub use self::cpu::{CpuFeatures, cpus_node, pmu_node, psci_node, timer_node};
pub use self::error::Error;
pub use self::kvm_stats::KvmStats;
pub use self::memory::{GuestRam, HugePagesDisabled, RamPages, memory_node};
#[cfg(target_arch = "aarch64")]
pub use self::{
    gsi_routing::{GsiRoutes, Msi, Target},
    vcpu::{BootRegisters, ImmediateExit, Vcpu, program_counter},
    vm::Vm,
};
