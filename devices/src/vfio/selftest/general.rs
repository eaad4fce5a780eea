//! The test for devices of which nothing is known: what VFIO offers works, and the device keeps
//! quiet.

use std::sync::Arc;
use std::time::Duration;

use super::{DmaBuffer, SelfTest, SelfTestError, TestReport};
use crate::vfio::error_chain::chain;
use crate::vfio::region::RegisterAccess;

/// How long a device is listened to for interrupts that nobody asked for.
pub(super) const QUIET: Duration = Duration::from_millis(100);

/// How much is mapped for DMA, in pages of each size: 1 GiB.
const MAPPED: u64 = 1 << 30;

/// How many mappings of a container are left to others, and how many are taken for possible where
/// the kernel doesn't say (`dma_entry_limit` of vfio_iommu_type1).
const SPARE: u64 = 16;
const USUAL_LIMIT: u64 = 65535;

/// Runs it.
///
/// # Errors
///
/// None: whatever fails is in the report.
#[cold]
pub fn test(test: &mut SelfTest) -> Result<TestReport, SelfTestError> {
    let mut report = TestReport::new("general");
    regions(test, &mut report);
    lines(test, &mut report);
    dma(test, &mut report);
    Ok(report)
}

/// Reads the first word of every region.
fn regions(test: &SelfTest, report: &mut TestReport) {
    for region in test.regions() {
        let how = if region.mapped().is_some() { "mapped" } else { "trapped" };
        let read = region.read32(0);
        let outcome = read
            .map(|value| format!("{:#x} bytes, {how}, reads {value:#010x} at 0", region.size()));
        report.add(format!("region {}", region.index()), outcome.map_err(|e| chain(&e)));
    }
}

/// Arms every interrupt, listens, masks and unmasks.
fn lines(test: &mut SelfTest, report: &mut TestReport) {
    let lines = test.lines();
    if lines.iter().next().is_none() {
        return;
    }
    report.add("interrupts armed", lines.arm().map(|()| count(lines.iter().count())).map_err(told));
    let quiet = match lines.wait(QUIET) {
        Ok(None) => Ok(format!("none within {} ms", QUIET.as_millis())),
        Ok(Some(index)) => Err(format!("interrupt {index} is pending: the device is at work")),
        Err(error) => Err(chain(&error)),
    };
    report.add("interrupts pending", quiet);
    let maskable: Vec<_> = lines.iter().filter(|line| line.info().maskable).collect();
    let masked = maskable.iter().try_for_each(|line| line.mask().and_then(|()| line.unmask()));
    let masked = masked.map(|()| count(maskable.len()));
    report.add("interrupts masked and unmasked", masked.map_err(told));
}

fn count(number: usize) -> String {
    format!("{number} of them")
}

fn told(error: SelfTestError) -> String {
    chain(&error)
}

/// The page sizes that IOMMUs have with Arm's translation tables of 4 KiB granule (Arm ARM, "Level 1
/// to 3 descriptors"), a bit each: what is tried where the kernel doesn't say.
const USUAL_SIZES: u64 = 4 << 10 | 2 << 20 | 1 << 30;

/// Maps and unmaps 1 GiB in pages of every size that the IOMMU offers.
pub(super) fn dma(test: &mut SelfTest, report: &mut TestReport) {
    let info = test.iommu().info();
    let sizes = match info.page_sizes {
        0 => USUAL_SIZES & !info.alignment.saturating_sub(1) | info.alignment,
        sizes => sizes,
    };
    let limit = info.mappings_left.map_or(USUAL_LIMIT, u64::from);
    for page in (0..u64::BITS).map(|bit| 1 << bit).filter(|page| sizes & page != 0) {
        if page > MAPPED {
            continue;
        }
        // As many mappings as the kernel allows: of one page each, or of the fewest that fit.
        let fewest = (MAPPED / limit.saturating_sub(SPARE).max(1)).max(1).next_power_of_two();
        let block = page.max(fewest);
        let outcome = map_in_blocks(test, block);
        test.unmap_all();
        let what = format!("DMA: 1 GiB in pages of {}", size(page));
        report.add(what, outcome.map_err(told));
    }
}

/// Maps one block of memory again and again until 1 GiB of IOVA is taken.
fn map_in_blocks(test: &mut SelfTest, block: u64) -> Result<String, SelfTestError> {
    let length = usize::try_from(block).unwrap_or(usize::MAX);
    let memory = Arc::new(DmaBuffer::new(length)?);
    let base = gibibyte(test)?;
    let blocks = MAPPED / block;
    for number in 0..blocks {
        test.map(base + number * block, &memory, block)?;
    }
    Ok(format!("{blocks} mappings of {} at IOVA {base:#x}", size(block)))
}

/// A free, aligned GiB of IOVA.
fn gibibyte(test: &SelfTest) -> Result<u64, SelfTestError> {
    let places = (1..1024).map(|number| number * MAPPED);
    let mut free = places.filter(|iova| test.iommu().constraints().check(*iova, MAPPED).is_ok());
    free.next().ok_or(SelfTestError::NoIova { size: MAPPED })
}

fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}
