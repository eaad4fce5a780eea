//! Resets of a device that its guest asks for.

use std::sync::Arc;

use crate::scmi::Reset;
use crate::vfio::bindings::Binding;
use crate::vfio::error_chain::chain;
use crate::vfio::quiesce::QuiesceError;
use crate::vfio::region::{RegisterAccess, VfioRegion};
use crate::vfio::uapi::DeviceCalls;

/// Resets a device as [`PlatformDevice::quiesce`](super::PlatformDevice::quiesce) does: by its binding,
/// then by VFIO.
pub(super) struct Resetter {
    pub(super) calls: Arc<dyn DeviceCalls>,
    /// VFIO can.
    pub(super) reset: bool,
    pub(super) regions: Vec<Arc<VfioRegion>>,
    pub(super) binding: Option<&'static Binding>,
}

impl Reset for Resetter {
    fn reset(&self) -> Result<(), String> {
        if let Some(binding) = self.binding {
            let stopped = quiesce(binding, &self.regions);
            // What VFIO resets needn't have stopped before.
            stopped.or_else(|error| if self.reset { Ok(()) } else { Err(chain(&error)) })?;
        }
        if self.reset { self.calls.reset().map_err(|error| chain(&error)) } else { Ok(()) }
    }
}

/// Has the binding stop a device.
pub(super) fn quiesce(binding: &Binding, regions: &[Arc<VfioRegion>]) -> Result<(), QuiesceError> {
    let regions: Vec<&dyn RegisterAccess> =
        regions.iter().map(|region| &**region as &dyn RegisterAccess).collect();
    (binding.quiesce)(&regions)
}
