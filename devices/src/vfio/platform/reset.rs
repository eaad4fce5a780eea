//! Stopping a device: between its owners, and as a reset that its guest asks for.

use std::sync::Arc;

use super::PlatformError;
use crate::scmi::Reset;
use crate::vfio::bindings::{self, Binding};
use crate::vfio::error_chain::chain;
use crate::vfio::node::NodeOptions;
use crate::vfio::quiesce::{QuiesceError, Quiesced};
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

/// The binding of a device: by the host's `compatible` first, since an option may give the guest another.
pub(super) fn binding(compatible: &[String], options: &NodeOptions) -> Option<&'static Binding> {
    bindings::find(compatible).or_else(|| bindings::find(&options.compatible))
}

/// Stops a device of which nothing is open but these calls.
pub(super) fn stop_opened(
    name: &str,
    calls: Arc<dyn DeviceCalls>,
    compatible: &[String],
    options: &NodeOptions,
) -> Result<Quiesced, PlatformError> {
    let failed = |error| PlatformError::Info(name.to_owned(), error);
    let info = calls.info().map_err(failed)?;
    let binding = binding(compatible, options);
    let regions = if binding.is_some() { info.regions.min(super::MAX_COUNT) } else { 0 };
    let regions: Vec<_> = (0..regions)
        .map(|index| VfioRegion::open(calls.clone(), index, None).map(Arc::new))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    stop(name, &*calls, info.reset, binding, &regions)
}

/// Stops a device by its binding, then by VFIO's `reset` where there is one.
pub(super) fn stop(
    name: &str,
    calls: &dyn DeviceCalls,
    reset: bool,
    binding: Option<&Binding>,
    regions: &[Arc<VfioRegion>],
) -> Result<Quiesced, PlatformError> {
    let mut quiesced = Quiesced::Unsupported;
    if let Some(binding) = binding {
        quiesce(binding, regions)
            .map_err(|error| PlatformError::Quiesce(name.to_owned(), error))?;
        quiesced = Quiesced::ByBinding(binding.name);
    }
    if reset {
        calls.reset().map_err(|error| PlatformError::Reset(name.to_owned(), error))?;
        quiesced = Quiesced::ByReset;
    }
    Ok(quiesced)
}

/// Has the binding stop a device.
pub(super) fn quiesce(binding: &Binding, regions: &[Arc<VfioRegion>]) -> Result<(), QuiesceError> {
    let regions: Vec<&dyn RegisterAccess> =
        regions.iter().map(|region| &**region as &dyn RegisterAccess).collect();
    (binding.quiesce)(&regions)
}
