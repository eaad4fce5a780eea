//! A target in each.

pub mod command_line;
pub mod console_clients;
pub mod control;
pub mod gdb;
pub mod host_tree;
pub mod initrd;
pub mod kernel;
pub mod overlay;
pub mod pci;
pub mod platform_devices;
pub mod scmi;
pub mod vfio_user;
pub mod vhost_user;
pub mod virtio_pci;
pub mod virtio_queues;
