//! KVM and the CPU: the machine's memory map, guest RAM, vCPUs and interrupt controller.
//!
//! Each part describes itself to the guest: `node()` methods return device-tree nodes.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

pub mod layout;

#[cfg(target_arch = "aarch64")]
mod cpus;
#[cfg(target_arch = "aarch64")]
mod error;
#[cfg(target_arch = "aarch64")]
pub mod exit;
#[cfg(target_arch = "aarch64")]
mod features;
#[cfg(target_arch = "aarch64")]
pub mod gic;
#[cfg(target_arch = "aarch64")]
mod memory;
#[cfg(target_arch = "aarch64")]
mod route;
#[cfg(target_arch = "aarch64")]
pub mod stats;
#[cfg(target_arch = "aarch64")]
mod vcpu;
#[cfg(target_arch = "aarch64")]
mod vm;

#[cfg(target_arch = "aarch64")]
pub use self::{
    cpus::{cpus_node, pmu_node, psci_node, timer_node},
    error::Error,
    features::Features,
    memory::{GuestRam, SmallPages, memory_node},
    route::{Msi, Routes},
    vcpu::{Boot, ImmediateExit, Vcpu},
    vm::Vm,
};
