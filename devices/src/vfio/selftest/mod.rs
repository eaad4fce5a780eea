//! Self-tests of devices, without a guest: a device's registers, its interrupts as eventfds, and
//! buffers for DMA.
//!
//! What only one kind of device can do is tested by its [binding](super::bindings), which builds on
//! this; every other device gets a general test here.

mod buffer;
mod error;
mod general;
mod interrupts;
mod isolation;
mod pci;
mod report;
mod step;

use std::sync::Arc;

use boot::fdt::host::HostTree;

pub use self::buffer::DmaBuffer;
pub use self::error::SelfTestError;
pub use self::interrupts::TestInterrupts;
pub use self::isolation::Canary;
pub use self::report::{ChannelResult, Check, Isolation, TestReport};
pub use self::step::StepError;
use super::assign::{self, AssignError, Assignment, DeviceRef};
use super::host::Host;
use super::iommu::{Iommu, IommuOptions};
use super::region::{VfioRegion, host_page_size};
use super::uapi::{DeviceCalls, DeviceInfo, IoctlError};

/// The IOVAs of two buffers are this far apart: what lies between is not mapped.
const BUFFER_SPACING: u64 = 16 << 20;

/// The lowest IOVA of a buffer: above what usually is reserved (the MSI doorbells).
const MIN_IOVA: u64 = 0x1000_0000;

/// The end of the IOVAs of buffers: a 32-bit device reaches all of them.
const MAX_IOVA: u64 = 1 << 32;

/// A device under test. Its interrupts are disarmed and its buffers are unmapped when it is dropped.
pub struct SelfTest {
    // Dropped in this order: the device does nothing any more when its memory goes.
    interrupts: TestInterrupts,
    regions: Vec<Arc<VfioRegion>>,
    calls: Arc<dyn DeviceCalls>,
    iommu: Iommu,
    buffers: Vec<Arc<DmaBuffer>>,
    name: String,
    compatible: Vec<String>,
    is_pci: bool,
    next_iova: u64,
}

impl SelfTest {
    /// Opens a device that is bound to VFIO.
    ///
    /// # Errors
    ///
    /// It can't be assigned, or VFIO doesn't describe it.
    #[cold]
    pub fn open(host: &Host, name: &str, options: IommuOptions) -> Result<Self, SelfTestError> {
        let mut assignments = assign::preflight(host, &[DeviceRef::from(name)])?;
        let iommu = Iommu::open(host, &assignments, options)?;
        let assignment = assignments.pop().ok_or(AssignError::NoDevices)?;
        let calls: Arc<dyn DeviceCalls> = iommu.open_device(&assignment)?;
        let info = calls.info().map_err(SelfTestError::Info)?;
        Ok(Self {
            // A PCI function's are tested one kind at a time.
            interrupts: TestInterrupts::open(&calls, if info.pci { 0 } else { info.irqs })?,
            regions: regions(&calls, &info).map_err(SelfTestError::Info)?,
            calls,
            iommu,
            buffers: Vec::new(),
            name: assignment.name().to_owned(),
            compatible: compatible(&assignment).unwrap_or_default(),
            is_pci: info.pci,
            next_iova: MIN_IOVA,
        })
    }

    /// The device's name in sysfs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `compatible` of its node in the host's device tree; empty if it has none.
    pub fn compatible(&self) -> &[String] {
        &self.compatible
    }

    /// Its regions, in VFIO's order.
    pub fn regions(&self) -> &[Arc<VfioRegion>] {
        &self.regions
    }

    /// Its interrupts; none of a PCI function.
    pub fn interrupts(&mut self) -> &mut TestInterrupts {
        &mut self.interrupts
    }

    /// Its device file.
    pub fn calls(&self) -> &Arc<dyn DeviceCalls> {
        &self.calls
    }

    /// The IOMMU in front of it.
    pub fn iommu(&self) -> &Iommu {
        &self.iommu
    }

    /// Runs the general test. A device that fails is in the report.
    #[cold]
    pub fn run_general(&mut self) -> TestReport {
        if self.is_pci { pci::run(self) } else { general::run(self) }
    }

    /// A buffer that the device reaches, and its IOVA, which is below 4 GiB; `size` in bytes is
    /// rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// The host has no memory, or doesn't map it.
    pub fn dma_buffer(&mut self, size: usize) -> Result<(Arc<DmaBuffer>, u64), SelfTestError> {
        let buffer = Arc::new(DmaBuffer::new(size)?);
        let iova = self.free_iova(buffer.size())?;
        self.map(iova, &buffer, buffer.size())?;
        Ok((buffer, iova))
    }

    /// An IOVA below 4 GiB at which nothing is mapped for `size` bytes, nor will be.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn free_iova(&mut self, size: u64) -> Result<u64, SelfTestError> {
        let mut iova = self.next_iova;
        while let Some(end) = iova.checked_add(size).filter(|end| *end <= MAX_IOVA) {
            let constraints = self.iommu.constraints();
            if constraints.check(iova, size).is_ok() && constraints.reaches(iova, size) {
                let next = end.next_multiple_of(BUFFER_SPACING);
                self.next_iova = next.saturating_add(BUFFER_SPACING);
                return Ok(iova);
            }
            iova = iova.saturating_add(BUFFER_SPACING);
        }
        Err(SelfTestError::NoIova(size))
    }

    /// Whether memory may be mapped at this IOVA for the device.
    fn has_iova(&self, iova: u64) -> bool {
        (MIN_IOVA..self.next_iova).contains(&iova)
    }

    /// Maps the first `size` bytes of `buffer` at `iova`; the buffer is kept until
    /// [`Self::unmap_all`].
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn map(
        &mut self,
        iova: u64,
        buffer: &Arc<DmaBuffer>,
        size: u64,
    ) -> Result<(), SelfTestError> {
        let address = buffer.address().filter(|_| size <= buffer.size());
        let address = address.ok_or(SelfTestError::NoIova(size))?;
        // SAFETY: the memory is read and written by raw pointers only, and is kept until all is
        // unmapped.
        unsafe { self.iommu.map_iova(iova, address, size) }
            .map_err(|source| SelfTestError::Map { iova, size, source })?;
        self.buffers.push(buffer.clone());
        Ok(())
    }

    /// Unmaps all buffers.
    pub fn unmap_all(&mut self) {
        self.iommu.unmap_all();
        self.buffers.clear();
    }
}

/// The device's regions; of a PCI function's, those that it has.
fn regions(
    calls: &Arc<dyn DeviceCalls>,
    info: &DeviceInfo,
) -> Result<Vec<Arc<VfioRegion>>, IoctlError> {
    let open = |index| VfioRegion::open(calls.clone(), index, Some(host_page_size())).map(Arc::new);
    let regions = (0..info.regions).map(open);
    if !info.pci {
        return regions.collect();
    }
    // VFIO has an index for each kind of region, and refuses those that a function lacks.
    Ok(regions.filter_map(Result::ok).filter(|region| region.size() != 0).collect())
}

/// `compatible` of the device's node, if it has one.
fn compatible(assignment: &Assignment) -> Option<Vec<String>> {
    let directory = assignment.device.of_node().ok().flatten()?;
    let node = HostTree::system().ok()?.node(&directory).ok()?;
    let strings = node.strings("compatible").ok().flatten()?;
    Some(strings.into_iter().map(str::to_owned).collect())
}
