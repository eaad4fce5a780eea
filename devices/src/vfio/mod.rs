//! Device assignment: a host's device in the guest's hands, through VFIO.
//!
//! In the order in which a machine comes to be:
//!
//! 1. [`assign`] looks at [`host`] and decides whether the devices can be assigned.
//! 2. [`iommu`] opens the way to the IOMMU, iommufd or a container, and attaches the devices.
//! 3. [`platform`] opens each device; the machine is now fully known and can be planned.
//! 4. [`platform::PlatformDevice::quiesce`] stops what a device was doing, then
//!    [`iommu::Iommu::map`] lets it reach the guest's RAM.
//! 5. [`region`]s are mapped into the guest or trapped, [`irq`]s are connected and, last, armed.
//!
//! Nothing of this needs the VMM while the guest runs.

pub mod assign;
pub mod bindings;
pub mod driver_binding;
pub mod error_chain;
pub mod fd_limit;
pub mod host;
pub mod inherited;
pub mod iommu;
pub mod irq;
pub mod memlock;
pub mod node;
pub mod pci;
pub mod platform;
pub mod quiesce;
pub mod region;
pub mod remedy;
pub mod selftest;
pub mod uapi;
pub mod unbound;

#[cfg(test)]
mod testing;
