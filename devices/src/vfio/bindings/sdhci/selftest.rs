//! The controller driven without a guest: commands and their interrupts, and what a card holds, read word
//! by word and by DMA, which must be the same. Nothing is written to the card.
//!
//! ADMA2's descriptors: SD Host Controller Simplified Specification, "Descriptor Table".

use std::sync::Arc;
use std::time::Duration;

use super::card::{BLOCK_SIZE, Slot};
use super::quiesce::stop;
use super::registers::{
    ADMA_ERROR, CAPABILITIES, CARD_INSERTED, HAS_ADMA2, PRESENT_STATE, VERSION, specification,
};
use super::{NAME, STOP_TIMEOUT};
use crate::vfio::quiesce::QuiesceError;
use crate::vfio::region::RegisterAccess;
use crate::vfio::selftest::{
    ChannelResult, DmaBuffer, Isolation, SelfTest, SelfTestError, StepError, TestReport,
};

/// How many blocks are read.
const BLOCKS: u32 = 16;
const BYTES: usize = BLOCKS as usize * BLOCK_SIZE;

/// How the descriptors divide them, in bytes: a multiple of 4 each.
const DIVISIONS: [&[usize]; 4] =
    [&[BYTES], &[4096, 4096], &[512, 1028, 2044, 4, 4604], &[4, 8180, 8]];

/// How often they are read in each way.
const ROUNDS: usize = 4;

/// Where what is read begins in the memory, and what lies between two descriptors' parts, in bytes.
const DATA: usize = 0x1000;
const GAP: usize = 64;
const FILL: u8 = 0xa5;
const SIZE: usize = DATA + 2 * BYTES;

/// Runs the test.
///
/// # Errors
///
/// The host refused something without which nothing can be tested.
#[cold]
pub(super) fn run(test: &mut SelfTest) -> Result<TestReport, SelfTestError> {
    let mut report = TestReport::new(NAME);
    let region = test.regions().first().cloned().ok_or(QuiesceError::NoRegion(0))?;
    stop(&*region, STOP_TIMEOUT)?;
    let (version, capabilities) = (region.read32(VERSION)?, region.read32(CAPABILITIES)?);
    let version = specification(version).unwrap_or(0);
    let has_adma = capabilities & HAS_ADMA2 != 0;
    let what = format!(
        "version {}.{:02}, {} ADMA2",
        version / 100,
        version % 100,
        if has_adma { "with" } else { "without" }
    );
    report.add("controller", Ok::<_, String>(what));
    let memory = Memory::new(test)?;
    let mut slot = Slot::new(test, region, version, capabilities);
    let result = run_steps(&mut slot, &memory, has_adma, &mut report);
    // In any case: nobody else should find it active.
    let stopped = slot.stop();
    slot.test.unmap_all();
    result?;
    report.add("stopped", stopped.map(|()| "reset, no interrupt is high"));
    Ok(report)
}

fn run_steps(
    slot: &mut Slot<'_>,
    memory: &Memory,
    has_adma: bool,
    report: &mut TestReport,
) -> Result<(), SelfTestError> {
    slot.test.interrupts().arm()?;
    report.add_step("interrupts at rest", slot.test.interrupts().check_quiet())?;
    if !report.add_step("power and clock", slot.power_on())? {
        return Ok(());
    }
    let is_there = slot.region.read32(PRESENT_STATE)? & CARD_INSERTED != 0;
    let card = if is_there { slot.identify() } else { Ok(None) };
    let is_usable = matches!(card, Ok(Some(_)));
    let card = card.map(|card| card.unwrap_or_else(|| "none of SD: no transfer is tested".into()));
    report.add_step("card", card)?;
    if is_usable && has_adma {
        report.channels.push(transfers(slot, memory)?);
        report.isolation = Some(isolation(slot, memory)?);
    }
    slot.stop()?;
    report.add_step("no interrupt too many", slot.test.interrupts().check_quiet())?;
    Ok(())
}

/// Reads the blocks in all ways.
fn transfers(slot: &mut Slot<'_>, memory: &Memory) -> Result<ChannelResult, SelfTestError> {
    let mut result = ChannelResult::default();
    let mut all = || {
        let expected = slot.read_by_port(BLOCKS)?;
        for sizes in DIVISIONS.into_iter().cycle().take(DIVISIONS.len().saturating_mul(ROUNDS)) {
            let busy = transfer(slot, memory, sizes, &expected)?;
            result.count(BYTES as u64, busy);
        }
        Ok(())
    };
    match all() {
        Ok(()) => {}
        Err(StepError::Device(failure)) => result.failure = Some(failure),
        Err(StepError::Host(error)) => return Err(error),
    }
    Ok(result)
}

/// Reads the blocks by DMA and verifies every byte; the time that took.
fn transfer(
    slot: &mut Slot<'_>,
    memory: &Memory,
    sizes: &[usize],
    expected: &[u8],
) -> Result<Duration, StepError> {
    let descriptors = memory.descriptors(sizes, None);
    memory.fill(sizes, expected);
    let busy = slot.read_by_dma(BLOCKS, descriptors)?;
    memory.verify(sizes, expected)?;
    Ok(busy)
}

/// Has the controller fetch descriptors from a canary, and write what it reads from the card there.
fn isolation(slot: &mut Slot<'_>, memory: &Memory) -> Result<Isolation, SelfTestError> {
    // A descriptor that says where more are: with these, the transfer would succeed.
    let link = [0x0000_0031_u32.to_le_bytes(), memory.iova.to_le_bytes()].concat();
    let canary = slot.test.canary(&link)?;
    let address = canary.address32()?;
    memory.descriptors(&[BYTES], None);
    let read = adma_error(slot, memory, BLOCKS, address);
    // As much as the canary has room for.
    let wild = memory.descriptors(&[BYTES / 2], Some(address));
    let write = adma_error(slot, memory, BLOCKS / 2, wild);
    canary.judge(read, write, true)
}

/// Has a transfer fail for want of memory; then one that works.
fn adma_error(
    slot: &mut Slot<'_>,
    memory: &Memory,
    blocks: u32,
    descriptors: u32,
) -> Result<String, StepError> {
    let what = match slot.read_by_dma(blocks, descriptors) {
        Ok(_) => return Err("it went on as if the memory were there".into()),
        Err(StepError::Device(failure)) => failure,
        Err(error) => return Err(error),
    };
    let is_adma = slot.take_error() & ADMA_ERROR != 0;
    slot.recover()?;
    if !is_adma {
        return Err(what.into());
    }
    let expected = slot.read_by_port(BLOCKS)?;
    transfer(slot, memory, &[BYTES], &expected)?;
    Ok(format!("{what}; the next transfer works"))
}

/// Descriptors, and what is read.
struct Memory {
    buffer: Arc<DmaBuffer>,
    /// Its bus address.
    iova: u32,
}

impl Memory {
    fn new(test: &mut SelfTest) -> Result<Self, SelfTestError> {
        let (buffer, iova) = test.dma_buffer(SIZE)?;
        let iova = u32::try_from(iova).map_err(|_| SelfTestError::NoIova(iova))?;
        Ok(Self { buffer, iova })
    }

    /// Where parts of these sizes are, by offset.
    fn parts(sizes: &[usize]) -> impl Iterator<Item = (usize, usize)> {
        let mut next = DATA;
        sizes.iter().map(move |size| {
            let at = next;
            next = next.saturating_add(*size).saturating_add(GAP);
            (at, *size)
        })
    }

    /// Writes descriptors of parts of these sizes, all at bus address `elsewhere` if there is one; their
    /// bus address.
    fn descriptors(&self, sizes: &[usize], elsewhere: Option<u32>) -> u32 {
        let last = sizes.len().saturating_sub(1);
        let mut bytes = Vec::new();
        for (number, (at, size)) in Self::parts(sizes).enumerate() {
            // Valid, a transfer, the last one; 0 is 64 KiB.
            let attributes: u16 = if number == last { 0x23 } else { 0x21 };
            let at = self.iova.saturating_add(u32::try_from(at).unwrap_or(0));
            bytes.extend(attributes.to_le_bytes());
            bytes.extend(u16::try_from(size).unwrap_or(0).to_le_bytes());
            bytes.extend(elsewhere.unwrap_or(at).to_le_bytes());
        }
        self.buffer.write(0, &bytes);
        self.iova
    }

    /// Fills it so that no byte is right by chance.
    fn fill(&self, sizes: &[usize], expected: &[u8]) {
        let mut rest = expected;
        for (at, size) in Self::parts(sizes) {
            let (part, behind) = rest.split_at_checked(size).unwrap_or_default();
            rest = behind;
            let bytes = part.iter().map(|byte| !byte).chain([FILL; GAP]);
            self.buffer.write(at, &bytes.collect::<Vec<u8>>());
        }
    }

    /// Verifies every byte, and those behind each part.
    fn verify(&self, sizes: &[usize], expected: &[u8]) -> Result<(), StepError> {
        let mut rest = expected;
        for (at, size) in Self::parts(sizes) {
            let (part, behind) = rest.split_at_checked(size).unwrap_or_default();
            rest = behind;
            let found = self.buffer.read(at, size.saturating_add(GAP));
            let wanted = part.iter().chain(&[FILL; GAP]);
            let wrong = found.iter().zip(wanted).filter(|(found, read)| found != read).count();
            if wrong != 0 {
                return Err(format!("{wrong} of {size} bytes aren't what the port reads").into());
            }
        }
        Ok(())
    }
}
