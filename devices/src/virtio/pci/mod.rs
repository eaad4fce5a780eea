//! Virtio over PCI (virtio 1.2, 4.1): modern devices only.
//!
//! All registers are in one BAR; the vendor's capabilities in configuration space tell where
//! ([`layout`]). [`VirtioFunction`] is the function behind the host bridge.

mod common;
mod config;
mod function;
mod interrupts;
mod layout;
mod notify;

pub use function::{STOP_TIMEOUT, VirtioAttachment, VirtioFunction};
