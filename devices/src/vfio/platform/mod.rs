//! An assigned device of the platform or AMBA bus.
//!
//! The VMM's part, in this order:
//!
//! 1. while planning: [`node_builders`], then [`PlatformDevice::open`]. What the device has is known
//!    then ([`regions`](PlatformDevice::regions), [`irqs`](PlatformDevice::irqs)), so that addresses
//!    and interrupts can be allocated for it, and [`node`](PlatformDevice::node) describes it.
//! 2. while building, before guest RAM is mapped for DMA: [`quiesce`](PlatformDevice::quiesce), so
//!    that nothing a previous owner started writes into the guest.
//! 3. [`map_regions`](PlatformDevice::map_regions), then
//!    [`connect_irqs`](PlatformDevice::connect_irqs) once the guest's interrupt controller is
//!    complete.
//! 4. last before the guest runs: [`arm`](PlatformDevice::arm).
//! 5. while no vCPU runs, for a guest that begins anew: [`restart`](PlatformDevice::restart), then
//!    [`arm`](PlatformDevice::arm).
//! 6. when no vCPU runs any more: [`release`](PlatformDevice::release), before the guest's RAM is
//!    unmapped.
//!
//! Dropping the device releases it too. A VMM that is killed does nothing of this: the kernel then
//! closes the files, which disables the interrupts and takes away the DMA mappings, and the next
//! owner quiesces the device ([`stop`]).
//!
//! # A device that doesn't stop
//!
//! Once its files are closed, the kernel gives its IOMMU group the default domain back
//! (`__iommu_release_dma_ownership`). One that translates maps nothing of this guest's. One of type
//! `identity` (`iommu.passthrough=1`) translates nothing: DMA that still runs goes to the host's memory, at
//! the guest's addresses. [`check_confinement`](PlatformDevice::check_confinement) refuses what nothing can
//! stop there.

mod error;
mod interrupts;
mod nodes;
mod reset;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use boot::fdt::host::HostTree;

pub use self::error::{InterruptHolder, PlatformError};
pub use self::nodes::node_builders;
use self::reset::Resetter;
use super::assign::{self, AssignError, Assignment};
use super::bindings::Binding;
use super::error_chain::chain;
use super::fd_limit;
use super::host::{Host, HostDevice, IommuGroup};
use super::iommu::{Iommu, IommuOptions};
use super::irq::{AssignedIrq, IrqTap};
use super::node::{GuestNodes, NodeBuilder, NodeOptions, ScmiIds};
use super::quiesce::Quiesced;
use super::region::{TrappedRegion, VfioRegion, host_page_size};
use super::uapi::DeviceCalls;
use super::unbound::UnboundDevice;
use crate::bus::MemorySlots;
use crate::bus::SharedDevice;
use crate::irq::{InterruptController, Spi};
use crate::scmi::Reset;

/// The most regions, and the most interrupts, of a device. The kernel's numbers are far below.
const MAX_COUNT: u32 = 1024;

/// Stops what a device is doing that a guest had whose process has ended. It is opened for that alone: what
/// its guest would have where needn't be known.
///
/// # Errors
///
/// It can't be opened, or doesn't stop.
#[cold]
pub fn stop(
    host: &Host,
    device: &HostDevice,
    options: &PlatformDeviceOptions,
    iommu: IommuOptions,
) -> Result<Quiesced, PlatformError> {
    if !options.quiesce {
        return Ok(Quiesced::Disabled);
    }
    let assignment = assign::assess(host, device.clone())?;
    let compatible = device.compatible().map_err(AssignError::from)?;
    let iommu = Iommu::open(host, std::slice::from_ref(&assignment), iommu)?;
    reset::stop_opened(device.name(), iommu.open_device(&assignment)?, &compatible, &options.node)
}

/// The options of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformDeviceOptions {
    /// Quiesce the device before the guest gets it and after; otherwise it is left as it is.
    pub quiesce: bool,
    /// Map its regions into the guest where they can be; otherwise the guest's accesses trap.
    pub mmap: bool,
    /// Its node in the guest.
    pub node: NodeOptions,
}

impl Default for PlatformDeviceOptions {
    fn default() -> Self {
        Self { quiesce: true, mmap: true, node: NodeOptions::default() }
    }
}

/// A region, or the part of it that isn't mapped, of which the guest's accesses trap: for the bus.
pub struct Trap {
    /// VFIO's index of the region.
    pub index: u32,
    /// Its GPA.
    pub gpa: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The region as a device on the bus.
    pub device: Arc<dyn SharedDevice>,
}

/// An assigned device.
#[derive(Debug)]
pub struct PlatformDevice {
    // The interrupts are dropped, and so disarmed, first.
    irqs: Vec<AssignedIrq>,
    regions: Vec<Arc<VfioRegion>>,
    name: String,
    calls: Arc<dyn DeviceCalls>,
    /// VFIO can reset it.
    reset: bool,
    binding: Option<&'static Binding>,
    builder: NodeBuilder,
    options: PlatformDeviceOptions,
    page_size: u64,
    /// The guest may have used it since it was quiesced last.
    used: bool,
    /// That it can't be stopped has been logged.
    said: AtomicBool,
}

impl PlatformDevice {
    /// Opens the device of an attached group with all its regions and interrupts. `builder` is its
    /// node's, of [`node_builders`]. VFIO resets it if it can.
    ///
    /// # Errors
    ///
    /// If it can't be opened, or has something that can't be assigned.
    pub fn open(
        iommu: &Iommu,
        assignment: &Assignment,
        builder: NodeBuilder,
        options: PlatformDeviceOptions,
    ) -> Result<Self, PlatformError> {
        let calls = iommu.open_device(assignment)?;
        Self::new(assignment.name(), calls, builder, options, host_page_size())
    }

    /// As [`open`](Self::open), of a device that isn't bound to VFIO, from its node: a guest can be
    /// planned with it, not run.
    ///
    /// # Errors
    ///
    /// As from [`open`](Self::open).
    #[cold]
    pub fn open_unbound(
        tree: &HostTree,
        device: &HostDevice,
        builder: NodeBuilder,
        options: PlatformDeviceOptions,
    ) -> Result<Self, PlatformError> {
        let (name, page_size) = (device.name(), host_page_size());
        let node = nodes::node_of(tree, device)?;
        let calls = UnboundDevice::platform(tree, device, &node, page_size)?;
        Self::new(name, Arc::new(calls), builder, options, page_size)
    }

    /// The device with these calls.
    fn new(
        name: &str,
        calls: Arc<dyn DeviceCalls>,
        mut builder: NodeBuilder,
        options: PlatformDeviceOptions,
        page_size: u64,
    ) -> Result<Self, PlatformError> {
        let failed = |error| PlatformError::Info(name.to_owned(), error);
        let info = calls.info().map_err(failed)?;
        if !info.platform && !info.amba || info.regions > MAX_COUNT || info.irqs > MAX_COUNT {
            return Err(PlatformError::NotPlatform(name.to_owned(), info));
        }
        // A trigger and a resample eventfd.
        fd_limit::reserve(u64::from(info.irqs).saturating_mul(2))
            .map_err(|error| PlatformError::FdLimit(name.to_owned(), error))?;
        let mappable = options.mmap.then_some(page_size);
        let regions = (0..info.regions)
            .map(|index| VfioRegion::open(calls.clone(), index, mappable).map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let irqs = (0..info.irqs)
            .map(|index| AssignedIrq::open(calls.clone(), index))
            .collect::<Result<_, _>>()
            .map_err(|error| PlatformError::Irq(name.to_owned(), error))?;
        // By the host's `compatible` first: an option may give the guest another.
        let binding = reset::binding(&builder.compatible, &options.node);
        if let Some(binding) = binding {
            (binding.refine)(&mut builder);
        }
        if !info.reset && binding.is_none() {
            builder.without_resets();
        }
        let node = |error| PlatformError::Node(name.to_owned(), error);
        builder.apply_options(&options.node).and_then(|()| builder.check()).map_err(node)?;
        Ok(Self {
            irqs,
            regions,
            name: name.to_owned(),
            calls,
            reset: info.reset,
            binding,
            builder,
            options,
            page_size,
            used: false,
            said: AtomicBool::new(false),
        })
    }

    /// Its name in sysfs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its regions, in VFIO's order.
    pub fn regions(&self) -> &[Arc<VfioRegion>] {
        &self.regions
    }

    /// Its interrupts, in VFIO's order.
    pub fn irqs(&self) -> &[AssignedIrq] {
        &self.irqs
    }

    /// Its binding, if there is one for this kind of device.
    pub fn binding(&self) -> Option<&'static Binding> {
        self.binding
    }

    /// The size of the host's pages in bytes: a mapped region's address in the guest is a multiple.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Checks that DMA which its guest leaves running reaches nothing: a binding or VFIO's reset can stop it, or
    /// the default domain of its group translates. A person who leaves it as it is answers for that.
    ///
    /// # Errors
    ///
    /// Neither holds, or sysfs can't be read.
    pub fn check_confinement(&self, group: &IommuGroup) -> Result<(), PlatformError> {
        if !self.options.quiesce || self.reset || self.binding.is_some() {
            return Ok(());
        }
        if !group.is_identity().map_err(AssignError::from)? {
            return Ok(());
        }
        Err(PlatformError::Unconfined { name: self.name.clone(), group: group.number() })
    }

    /// Its node in the guest but for addresses and interrupts.
    pub fn node_builder(&self) -> &NodeBuilder {
        &self.builder
    }

    /// Its nodes in the guest, with `gpas` for its regions, `spis` for its interrupts and, from `ids` on,
    /// the numbers of what it has by SCMI.
    ///
    /// # Errors
    ///
    /// If there aren't as many as it has.
    pub fn node(
        &self,
        gpas: &[u64],
        spis: &[Spi],
        ids: ScmiIds,
    ) -> Result<GuestNodes, PlatformError> {
        self.check_count("regions", self.regions.len(), gpas.len())?;
        self.check_count("interrupts", self.irqs.len(), spis.len())?;
        let regions: Vec<_> =
            gpas.iter().zip(&self.regions).map(|(gpa, region)| (*gpa, region.size())).collect();
        let irqs: Vec<_> =
            spis.iter().zip(&self.irqs).map(|(spi, irq)| (*spi, irq.trigger())).collect();
        Ok(self.builder.build_with(&regions, &irqs, ids))
    }

    /// Has every access to its registers trap, and its interrupts' signals passed on by what this returns, of
    /// each. To be done before anything is mapped, connected or armed.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors, or VFIO doesn't tell of a region again.
    #[cold]
    pub fn tap(&mut self) -> Result<Vec<IrqTap>, PlatformError> {
        let failed = |error| PlatformError::Info(self.name.clone(), error);
        let trapped = |region: &Arc<VfioRegion>| {
            VfioRegion::open(self.calls.clone(), region.index(), None).map(Arc::new)
        };
        self.regions =
            self.regions.iter().map(trapped).collect::<Result<_, _>>().map_err(failed)?;
        fd_limit::reserve((self.irqs.len() as u64).saturating_mul(2))
            .map_err(|error| PlatformError::FdLimit(self.name.clone(), error))?;
        let taps = self.irqs.iter_mut().map(AssignedIrq::tap).collect::<Result<_, _>>();
        taps.map_err(|error| PlatformError::Irq(self.name.clone(), error))
    }

    /// What resets it for a guest.
    pub fn resetter(&self) -> Arc<dyn Reset> {
        Arc::new(Resetter {
            calls: self.calls.clone(),
            reset: self.reset,
            regions: self.regions.clone(),
            binding: self.binding,
        })
    }

    /// Stops the device's DMA and interrupts.
    ///
    /// # Errors
    ///
    /// If it doesn't stop.
    pub fn quiesce(&self) -> Result<Quiesced, PlatformError> {
        if !self.options.quiesce {
            return Ok(Quiesced::Disabled);
        }
        let quiesced =
            reset::stop(&self.name, &*self.calls, self.reset, self.binding, &self.regions)?;
        if quiesced == Quiesced::Unsupported && !self.said.swap(true, Ordering::Relaxed) {
            log::info!(
                "{}: there is no binding that could stop it, and VFIO has no reset for it: it is left \
                 as it is",
                self.name
            );
        }
        Ok(quiesced)
    }

    /// Maps its regions into the guest at `gpas`; those that can't be mapped as a whole are returned,
    /// to be put on the bus.
    ///
    /// # Safety
    ///
    /// The device must not be dropped while the guest can run.
    ///
    /// # Errors
    ///
    /// If there aren't as many addresses as regions, an address isn't at a page, or the hypervisor
    /// refuses it.
    pub unsafe fn map_regions(
        &mut self,
        slots: &dyn MemorySlots,
        gpas: &[u64],
    ) -> Result<Vec<Trap>, PlatformError> {
        self.check_count("regions", self.regions.len(), gpas.len())?;
        self.used = true;
        let mut traps = Vec::new();
        for (region, gpa) in self.regions.iter().zip(gpas.iter().copied()) {
            let (index, page) = (region.index(), self.page_size);
            if !region.areas().is_empty() && !gpa.is_multiple_of(page) {
                return Err(PlatformError::Misaligned {
                    name: self.name.clone(),
                    index,
                    gpa,
                    page,
                });
            }
            for area in region.areas() {
                let gpa = gpa.saturating_add(area.range().start);
                // SAFETY: mapped for as long as the region lives, which is as long as `self`, which
                // the caller keeps.
                unsafe { slots.map(gpa, area.host(), area.size()) }.map_err(|source| {
                    PlatformError::MapRegion { name: self.name.clone(), index, gpa, source }
                })?;
            }
            if region.mapped().is_none() {
                // What is mapped of it doesn't trap.
                let trapped = TrappedRegion::new(&*self.name, region.clone());
                let (size, device) = (region.size(), Arc::new(Mutex::new(trapped)));
                traps.push(Trap { index, gpa, size, device });
            }
        }
        Ok(traps)
    }

    /// Connects its interrupts to `spis` of the guest's controller, which must be complete.
    ///
    /// # Errors
    ///
    /// If there aren't as many SPIs as interrupts, or the controller refuses one.
    pub fn connect_irqs(
        &self,
        gic: &dyn InterruptController,
        spis: &[Spi],
    ) -> Result<(), PlatformError> {
        self.check_count("interrupts", self.irqs.len(), spis.len())?;
        for (irq, spi) in self.irqs.iter().zip(spis) {
            irq.connect(gic, *spi).map_err(|error| PlatformError::Irq(self.name.clone(), error))?;
        }
        Ok(())
    }

    /// Arms its interrupts on the host: all of them or none.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn arm(&mut self) -> Result<(), PlatformError> {
        let armed = self.irqs.iter_mut().try_for_each(AssignedIrq::arm);
        armed.map_err(|error| {
            self.disarm();
            PlatformError::Irq(self.name.clone(), error)
        })
    }

    /// Disarms its interrupts on the host.
    pub fn disarm(&mut self) {
        self.irqs.iter_mut().for_each(AssignedIrq::disarm);
    }

    /// Takes it back from a guest that runs no more: disarms its interrupts, then quiesces it. Does
    /// nothing if the guest never had it.
    ///
    /// # Errors
    ///
    /// If it doesn't stop. Once its files are closed it reaches what the default domain of its group maps.
    pub fn release(&mut self) -> Result<Quiesced, PlatformError> {
        self.disarm();
        if !std::mem::take(&mut self.used) {
            return Ok(Quiesced::Disabled);
        }
        self.quiesce()
    }

    /// Makes it as it was when the guest got it, for a guest that begins anew and runs not: disarms its
    /// interrupts, quiesces it, and lowers their lines. They are to be [armed](Self::arm) again.
    ///
    /// # Errors
    ///
    /// If it doesn't stop, or the controller refuses an interrupt.
    #[cold]
    pub fn restart(
        &mut self,
        gic: &dyn InterruptController,
        spis: &[Spi],
    ) -> Result<(), PlatformError> {
        self.disarm();
        self.quiesce()?;
        for (irq, spi) in self.irqs.iter().zip(spis) {
            irq.reconnect(gic, *spi)
                .map_err(|error| PlatformError::Irq(self.name.clone(), error))?;
        }
        Ok(())
    }

    fn check_count(
        &self,
        what: &'static str,
        expected: usize,
        found: usize,
    ) -> Result<(), PlatformError> {
        if expected == found {
            return Ok(());
        }
        Err(PlatformError::WrongCount { name: self.name.clone(), what, expected, found })
    }
}

impl Drop for PlatformDevice {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            log::error!("{}", chain(&error));
        }
    }
}

#[cfg(test)]
mod tests;
