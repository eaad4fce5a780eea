//! Device assignment through VFIO.
//!
//! In the order in which a machine is built:
//!
//! 1. [`assign`] checks by [`host`] (sysfs) whether the devices can be assigned. [`driver_binding`] binds
//!    them to VFIO's drivers on request.
//! 2. [`iommu`] opens iommufd or a container, and attaches the devices.
//! 3. [`platform`] and [`pci`] open each device; the machine is now fully known and can be planned.
//! 4. [`platform::PlatformDevice::quiesce`] stops a device's DMA and interrupts, then
//!    [`iommu::Iommu::map`] maps the guest's RAM.
//! 5. [`region`]s are mapped into the guest or trapped, [`irq`]s are connected and, last, armed.
//!
//! Nothing of this needs the VMM while the guest runs.

pub mod assign;
pub mod bindings;
pub mod driver_binding;
pub mod error_chain;
pub mod export;
pub mod fd_limit;
pub mod host;
pub mod hot_reset;
pub mod inherited;
pub mod iommu;
pub mod irq;
pub mod memlock;
pub mod node;
pub mod pci;
pub mod platform;
pub mod quiesce;
pub mod region;
pub mod register_table;
pub mod remedy;
pub mod selftest;
pub mod uapi;
pub mod unbound;

#[cfg(test)]
mod testing;
