//! Virtio devices (Virtual I/O Device (VIRTIO) Version 1.2, OASIS Committee Specification 01).
//!
//! A device is two halves. Its configuration, a [`Device`], belongs to the transport
//! ([`VirtioFunction`]: virtio over PCI), which keeps the registers that all devices have. What works
//! on its queues is a [`QueueHandler`] on a [thread](QueueThread) of its own: a function of a
//! [`VirtQueue`], which is rings in guest RAM, tested without a hypervisor.
//!
//! A notification of the driver is an ioeventfd, an interrupt is an irqfd: while a device works, no
//! access to a register of it leaves the kernel.

mod balloon;
pub mod block;
mod console;
mod device;
mod device_events;
mod entropy;
mod events;
pub mod net;
mod pci;
mod queue;
mod ram;
#[cfg(test)]
pub(crate) mod testing;
mod thread;
mod vhost;
pub mod vsock;

pub use balloon::Balloon;
pub use console::{Console, ConsolePort};
pub use device::{Activation, Device, DeviceType};
pub use device_events::DeviceEvents;
pub use entropy::Entropy;
pub use pci::{STOP_TIMEOUT, VirtioAttachment, VirtioFunction};
pub use queue::{
    Chain, Descriptor, FEATURES as QUEUE_FEATURES, QueueAddresses, QueueError, VirtQueue,
};
pub use thread::{FileEvent, FileHandler, QueueHandler, QueueThread, QueueThreads, Wait};
pub use vhost::VhostError;
