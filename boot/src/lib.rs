//! What the guest is handed at boot: its device tree, kernel, initrd and command line.
//!
//! The ground floor of strait: nothing here knows KVM or VFIO, and the only I/O is reading files.

pub mod fdt;
