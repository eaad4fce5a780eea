//! What the guest can touch: emulated devices, and real ones through VFIO.
//!
//! Builds and is tested on any machine: the hypervisor is reached only through the small traits
//! of [`irq`] and [`bus`], which `vmm` implements over KVM.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]
#![deny(missing_docs)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

pub mod answer;
pub mod bus;
pub mod console;
pub mod extent;
mod file_lock;
pub mod flash;
pub mod gicv2m;
pub mod gpio;
pub mod irq;
pub mod pci;
pub mod peer;
pub mod poll;
pub mod pvpanic;
pub mod ratelimit;
mod release;
pub mod rtc;
pub mod scmi;
pub mod serial;
pub mod stop;
pub mod sync;
pub mod task_thread;
#[cfg(test)]
mod testing;
pub mod thread_kind;
pub mod vfio;
pub mod vfio_user;
pub mod vhost_user;
pub mod virtio;
