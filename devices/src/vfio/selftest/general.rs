//! The self-test of devices without a binding: what VFIO offers works, and the device raises no
//! interrupt by itself.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use boot::size::{GIB, KIB, MIB, Size};

use super::{DmaBuffer, SelfTest, SelfTestError, TestInterrupts, TestReport};
use crate::vfio::region::RegisterAccess;
use crate::vfio::uapi::page_sizes;

/// How long to wait for interrupts of a device that nobody drives.
pub(super) const QUIET: Duration = Duration::from_millis(100);

/// How many mappings of a container are left to others, and how many are assumed to be possible where
/// the kernel doesn't say (`dma_entry_limit` of vfio_iommu_type1).
const SPARE_MAPPINGS: u64 = 16;
const DEFAULT_MAPPING_LIMIT: u64 = 65535;

/// The page sizes that IOMMUs have with Arm's translation tables of 4 KiB granule (Arm ARM, "Level 1
/// to 3 descriptors"), a bit each: what is tested where the kernel doesn't say.
const DEFAULT_PAGE_SIZES: u64 = (4 * KIB) | (2 * MIB) | GIB;

/// Runs it.
#[cold]
pub(super) fn run(test: &mut SelfTest) -> TestReport {
    let mut report = TestReport::new("general");
    check_regions(test, &mut report);
    check_interrupts(test.interrupts(), &mut report);
    check_dma(test, &mut report);
    report
}

/// Reads the first word of every region.
fn check_regions(test: &SelfTest, report: &mut TestReport) {
    for region in test.regions() {
        let access = if region.mapped().is_some() { "mapped" } else { "trapped" };
        let outcome = region
            .read32(0)
            .map(|value| format!("{:#x} bytes, {access}, reads {value:#010x} at 0", region.size()));
        report.add(format!("region {}", region.index()), outcome);
    }
}

/// Arms every interrupt, waits for one that shouldn't come, masks and unmasks.
fn check_interrupts(interrupts: &mut TestInterrupts, report: &mut TestReport) {
    let count = interrupts.count();
    if count == 0 {
        return;
    }
    report.add("interrupts armed", interrupts.arm().map(|()| format!("{count} of them")));
    let pending: Result<_, Box<dyn Error>> = match interrupts.wait(QUIET) {
        Ok(None) => Ok(format!("none within {} ms", QUIET.as_millis())),
        Ok(Some(index)) => {
            Err(format!("interrupt {index} is pending: the device is active").into())
        }
        Err(error) => Err(error.into()),
    };
    report.add("interrupts pending", pending);
    let masked = interrupts.mask_and_unmask().map(|count| format!("{count} of them"));
    report.add("interrupts masked and unmasked", masked);
}

/// Maps and unmaps 1 GiB in pages of every size that the IOMMU offers.
pub(super) fn check_dma(test: &mut SelfTest, report: &mut TestReport) {
    let info = test.iommu().info();
    let sizes = match info.page_sizes {
        0 => DEFAULT_PAGE_SIZES & !info.alignment.saturating_sub(1) | info.alignment,
        sizes => sizes,
    };
    let limit = info.mappings_left.map_or(DEFAULT_MAPPING_LIMIT, u64::from);
    // As many mappings as the kernel allows: of one page each, or of the fewest that fit.
    let fewest = (GIB / limit.saturating_sub(SPARE_MAPPINGS).max(1)).max(1).next_power_of_two();
    for page in page_sizes(sizes).take_while(|page| *page <= GIB) {
        let outcome = map_gibibyte(test, page.max(fewest));
        test.unmap_all();
        report.add(format!("DMA: 1 GiB in pages of {:#}", Size(page)), outcome);
    }
}

/// Maps one block of memory again and again until 1 GiB of IOVA is mapped.
fn map_gibibyte(test: &mut SelfTest, block: u64) -> Result<String, SelfTestError> {
    let buffer = Arc::new(DmaBuffer::new(usize::try_from(block).unwrap_or(usize::MAX))?);
    let constraints = test.iommu().constraints();
    let base = (1..1024).map(|number| number * GIB).find(|at| constraints.check(*at, GIB).is_ok());
    let base = base.ok_or(SelfTestError::NoIova(GIB))?;
    let blocks = GIB / block;
    for number in 0..blocks {
        test.map(base + number * block, &buffer, block)?;
    }
    Ok(format!("{blocks} mappings of {:#} at IOVA {base:#x}", Size(block)))
}
