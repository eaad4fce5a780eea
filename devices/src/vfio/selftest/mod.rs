//! Self-tests of devices, without a guest: registers, its interrupts as eventfds, and
//! memory at IOVAs of its own.
//!
//! What only one kind of device can do is in its binding ([`Binding::self_test`]); every other gets
//! the [`general`] test.
//!
//! [`Binding::self_test`]: super::bindings::Binding::self_test

mod buffer;
mod error;
pub mod general;
mod interrupts;
pub mod pci;
mod report;

use std::sync::Arc;

use boot::fdt::host::HostTree;

pub use buffer::DmaBuffer;
pub use error::SelfTestError;
pub use interrupts::{TestInterrupt, TestInterrupts};
pub use report::{ChannelResult, Check, TestReport};

use super::assign::{self, AssignError, Assignment, DeviceRef};
use super::bindings::{self, Binding};
use super::host::Host;
use super::iommu::{Iommu, IommuOptions};
use super::region::{Region, host_page_size};
use super::uapi::{DeviceCalls, DeviceInfo, IoctlError};

/// Blocks of memory begin this far apart: what lies between is mapped nowhere.
const SPACING: u64 = 16 << 20;

/// The first IOVA that is given out: above what usually is reserved (the MSI doorbells).
const FIRST: u64 = 0x1000_0000;

/// IOVAs are given out below this: a 32-bit device reaches all of them.
const END: u64 = 1 << 32;

/// A device under test. The interrupts are disarmed and the memory is unmapped when it is dropped.
pub struct SelfTest {
    // Dropped in this order: the device does nothing any more when its memory goes.
    lines: TestInterrupts,
    regions: Vec<Arc<Region>>,
    calls: Arc<dyn DeviceCalls>,
    iommu: Iommu,
    memory: Vec<Arc<DmaBuffer>>,
    name: String,
    binding: Option<&'static dyn Binding>,
    /// It is a PCI function.
    pci: bool,
    next_iova: u64,
}

impl SelfTest {
    /// Opens a device that is bound to VFIO.
    ///
    /// # Errors
    ///
    /// It can't be assigned, or VFIO doesn't tell what it has.
    #[cold]
    pub fn open(host: &Host, name: &str, options: IommuOptions) -> Result<Self, SelfTestError> {
        let mut assignments = assign::preflight(host, &[DeviceRef::from(name)])?;
        let iommu = Iommu::open(host, &assignments, options)?;
        let assignment = assignments.pop().ok_or(AssignError::NoDevices)?;
        let calls: Arc<dyn DeviceCalls> = iommu.open_device(&assignment)?;
        let told = |source| SelfTestError::Untold { source };
        let info = calls.info().map_err(told)?;
        let regions = regions(&calls, &info).map_err(told)?;
        // Those of a PCI function aren't lines all of them, and one kind at a time.
        let lines = TestInterrupts::open(&calls, if info.pci { 0 } else { info.irqs })?;
        let binding = binding(&assignment);
        let name = assignment.name().to_owned();
        let (memory, next_iova) = (Vec::new(), FIRST);
        let pci = info.pci;
        Ok(Self { lines, regions, calls, iommu, memory, name, binding, pci, next_iova })
    }

    /// The device's name in sysfs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of this kind of device.
    pub fn binding(&self) -> Option<&'static dyn Binding> {
        self.binding
    }

    /// Its regions, in VFIO's order.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Its interrupts.
    pub fn lines(&mut self) -> &mut TestInterrupts {
        &mut self.lines
    }

    /// Its device file.
    pub fn calls(&self) -> &Arc<dyn DeviceCalls> {
        &self.calls
    }

    /// The IOMMU in front of it.
    pub fn iommu(&self) -> &Iommu {
        &self.iommu
    }

    /// Runs the test of this kind of device, or the general one.
    ///
    /// # Errors
    ///
    /// The host refused something without which nothing can be tested; a device that fails is in
    /// the report.
    #[cold]
    pub fn run(&mut self) -> Result<TestReport, SelfTestError> {
        let special = self.binding.and_then(|binding| binding.self_test(self));
        special.unwrap_or_else(|| if self.pci { pci::test(self) } else { general::test(self) })
    }

    /// Memory that the device reaches at an IOVA of its own below 4 GiB, which is returned with it;
    /// `size` in bytes is rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// The host has no memory, or doesn't map it.
    pub fn memory(&mut self, size: usize) -> Result<(Arc<DmaBuffer>, u64), SelfTestError> {
        let memory = Arc::new(DmaBuffer::new(size)?);
        let iova = self.hole(memory.size())?;
        self.map(iova, &memory, memory.size())?;
        Ok((memory, iova))
    }

    /// An IOVA below 4 GiB at which nothing is mapped for `size` bytes, nor will be.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn hole(&mut self, size: u64) -> Result<u64, SelfTestError> {
        let mut iova = self.next_iova;
        while let Some(end) = iova.checked_add(size).filter(|end| *end <= END) {
            let constraints = self.iommu.constraints();
            if constraints.check(iova, size).is_ok() && constraints.reaches(iova, size) {
                self.next_iova = end.next_multiple_of(SPACING).saturating_add(SPACING);
                return Ok(iova);
            }
            iova = iova.saturating_add(SPACING);
        }
        Err(SelfTestError::NoIova { size })
    }

    /// Maps the first `size` bytes of `memory` at `iova`; the memory is kept until
    /// [`Self::unmap_all`].
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn map(
        &mut self,
        iova: u64,
        memory: &Arc<DmaBuffer>,
        size: u64,
    ) -> Result<(), SelfTestError> {
        let failed = |source: IoctlError| SelfTestError::Map { iova, size, source };
        if size > memory.size() {
            return Err(SelfTestError::NoIova { size });
        }
        // SAFETY: the memory is read and written by raw pointers only, and is kept until all is
        // unmapped.
        unsafe { self.iommu.map_iova(iova, memory.address(), size) }.map_err(failed)?;
        self.memory.push(memory.clone());
        Ok(())
    }

    /// Takes all memory away from the device.
    pub fn unmap_all(&mut self) {
        self.iommu.unmap_all();
        self.memory.clear();
    }
}

/// The device's regions; of a PCI function's, those that it has.
fn regions(
    calls: &Arc<dyn DeviceCalls>,
    info: &DeviceInfo,
) -> Result<Vec<Arc<Region>>, IoctlError> {
    let open = |index| Region::open(calls.clone(), index, Some(host_page_size())).map(Arc::new);
    let regions = (0..info.regions).map(open);
    if !info.pci {
        return regions.collect();
    }
    // VFIO has an index for each kind of region, and refuses those that a function lacks.
    Ok(regions.filter_map(Result::ok).filter(|region| region.size() != 0).collect())
}

/// What is known of the device; nothing if it has no node in the device tree.
fn binding(assignment: &Assignment) -> Option<&'static dyn Binding> {
    let directory = assignment.device.of_node().ok().flatten()?;
    let node = HostTree::system().ok()?.node(&directory).ok()?;
    bindings::find(&node.strings("compatible").ok().flatten()?)
}
