//! KVM and the CPU: the machine's memory map, guest RAM, vCPUs and interrupt controller.
//!
//! Each part describes itself to the guest: `node` functions return device tree nodes. All but the
//! memory map and the CPUs' description is there on arm64 only.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]
#![deny(missing_docs)]

mod cpu;
#[cfg(target_arch = "aarch64")]
mod error;
#[cfg(target_arch = "aarch64")]
pub mod exit;
#[cfg(target_arch = "aarch64")]
pub mod gic;
#[cfg(target_arch = "aarch64")]
mod gsi_routing;
#[cfg(target_arch = "aarch64")]
mod kvm_stats;
pub mod layout;
#[cfg(target_arch = "aarch64")]
mod memory;
#[cfg(target_arch = "aarch64")]
mod vcpu;
#[cfg(target_arch = "aarch64")]
mod vm;

pub use self::cpu::{CpuFeatures, cpus_node, pmu_node, psci_node, timer_node};
#[cfg(target_arch = "aarch64")]
pub use self::{
    error::Error,
    gsi_routing::{GsiRoutes, Msi},
    kvm_stats::KvmStats,
    memory::{GuestRam, HugePagesDisabled, memory_node},
    vcpu::{BootRegisters, ImmediateExit, Vcpu},
    vm::Vm,
};
