//! The controller driven without a guest: frames that come back within it (UG1087, "network_control",
//! `loopback_local`), every byte of them, their interrupts, and what it does where no memory is.
//!
//! The descriptors are those of UG585, chapter 16, "Receive Buffer Descriptor Entry" and "Transmit Buffer
//! Descriptor Entry".

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::quiesce::stop;
use super::registers::{
    DESIGN_CONFIG6, DMA_CONFIG, DMA_SIMPLE, ENABLE_RECEIVE, ENABLE_TRANSMIT, INT_ENABLE,
    INT_STATUS, INT_TESTED, INTEGRATION, LOOPBACK_CONFIG, LOOPBACK_LOCAL, NETWORK_CONFIG,
    NETWORK_CONTROL, RECEIVE_BUS_ERROR, RECEIVE_QUEUE, RECEIVE_QUEUE_Q1, RECEIVE_STATUS, REVISION,
    TRANSMIT_BUS_ERROR, TRANSMIT_QUEUE, TRANSMIT_QUEUE_Q1, TRANSMIT_START, TRANSMIT_STATUS,
    of_queues,
};
use super::{NAME, STOP_TIMEOUT};
use crate::vfio::quiesce::QuiesceError;
use crate::vfio::region::{AccessError, RegisterAccess, VfioRegion};
use crate::vfio::selftest::{
    ChannelResult, DmaBuffer, Isolation, SelfTest, SelfTestError, StepError, TestReport,
};

/// How long a frame may take, on a busy machine and a model.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The lengths of the frames, without check sequence.
const FRAMES: [usize; 8] = [60, 61, 64, 127, 512, 1021, 1500, 1514];

/// How often all of them are sent.
const ROUNDS: usize = 4;

/// To a locally administered address, from another, of the EtherType for experiments (IEEE Std 802,
/// "Local Experimental EtherTypes"): what else is on the network is not among them.
const HEADER: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];

// What the memory holds, by offset in bytes. A descriptor has two words.
const RECEIVE_DESCRIPTORS: usize = 0;
const TRANSMIT_DESCRIPTORS: usize = 0x100;
/// A descriptor for queues that nothing is sent or received by.
const UNUSED_DESCRIPTOR: usize = 0x200;
const FRAME: usize = 0x800;
const RECEIVED: usize = 0x1000;
/// How far apart receive buffers are, which have 1536 bytes.
const STRIDE: u32 = 0x800;
const BUFFER: usize = STRIDE as usize;
const BUFFERS: usize = 8;

/// A receive descriptor's first word: software's, the last of the list.
const RECEIVED_ONE: u32 = 1 << 0;
const RECEIVE_WRAP: u32 = 1 << 1;
/// A receive descriptor's second word: length, first and last buffer of a frame.
const RECEIVED_LENGTH: u32 = 0x1fff;
const RECEIVED_WHOLE: u32 = 1 << 14 | 1 << 15;
/// A transmit descriptor's second word: last buffer of a frame, last of the list, software's.
const TRANSMIT_LAST: u32 = 1 << 15;
const TRANSMIT_WRAP: u32 = 1 << 30;
const TRANSMITTED: u32 = 1 << 31;

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
    let revision = region.read32(REVISION)?;
    let queues =
        of_queues(TRANSMIT_QUEUE_Q1, region.read32(DESIGN_CONFIG6)?).count().saturating_add(1);
    report
        .add("controller", Ok::<_, String>(format!("revision {revision:#010x}, {queues} queues")));
    let mut loopback = Loopback::new(test, region)?;
    let result = loopback.run(&mut report);
    // In any case: nobody else should find it active.
    let stopped = stop(&*loopback.region, STOP_TIMEOUT);
    loopback.test.unmap_all();
    result?;
    report.add("stopped", stopped.map(|()| "nothing is sent, no interrupt is high"));
    Ok(report)
}

/// The controller under test, which receives what it sends.
struct Loopback<'a> {
    test: &'a mut SelfTest,
    region: Arc<VfioRegion>,
    memory: Arc<DmaBuffer>,
    /// The memory's bus address.
    iova: u32,
}

impl<'a> Loopback<'a> {
    fn new(test: &'a mut SelfTest, region: Arc<VfioRegion>) -> Result<Self, SelfTestError> {
        let (memory, iova) = test.dma_buffer(RECEIVED + BUFFERS * BUFFER)?;
        let iova = u32::try_from(iova).map_err(|_| SelfTestError::NoIova(iova))?;
        Ok(Self { iova, test, region, memory })
    }

    fn run(&mut self, report: &mut TestReport) -> Result<(), SelfTestError> {
        self.test.interrupts().arm()?;
        report.add_step("interrupts at rest", self.test.interrupts().check_quiet())?;
        report.channels.push(self.frames()?);
        report.isolation = Some(self.isolation()?);
        self.stop_and_clear()?;
        report.add_step("no interrupt too many", self.test.interrupts().check_quiet())?;
        Ok(())
    }

    /// Sends and receives all frames.
    fn frames(&mut self) -> Result<ChannelResult, SelfTestError> {
        let mut result = ChannelResult::default();
        for (number, length) in FRAMES.into_iter().cycle().take(FRAMES.len() * ROUNDS).enumerate() {
            match self.frame(number, length) {
                Ok(busy) => result.count(length as u64, busy),
                Err(StepError::Device(failure)) => {
                    result.failure = Some(format!("{length} bytes: {failure}"));
                    break;
                }
                Err(StepError::Host(error)) => return Err(error),
            }
        }
        Ok(result)
    }

    /// Sends a frame, waits until it is back, and verifies every byte; the time that took.
    fn frame(&mut self, number: usize, length: usize) -> Result<Duration, StepError> {
        let frame = frame(number, length);
        self.memory.write(FRAME, &frame);
        self.memory.write(RECEIVED, &vec![0xa5; BUFFERS * BUFFER]);
        self.start(self.address(FRAME), self.address(RECEIVED), length)?;
        let started = Instant::now();
        let (region, memory) = (&*self.region, &*self.memory);
        let back = self.test.interrupts().wait_for(TIMEOUT, || {
            take_interrupt(region)?;
            let sent = word(memory, TRANSMIT_DESCRIPTORS + 4) & TRANSMITTED != 0;
            Ok(find(memory, &frame)?.filter(|()| sent))
        })?;
        if back.is_some() {
            return Ok(started.elapsed());
        }
        let (sent, received) = (region.read32(TRANSMIT_STATUS)?, region.read32(RECEIVE_STATUS)?);
        let what = format!("it didn't come back (TSR {sent:#x}, RSR {received:#x})");
        Err(StepError::Device(what))
    }

    /// Has it send a canary, and receive into one.
    fn isolation(&mut self) -> Result<Isolation, SelfTestError> {
        let canary = self.test.canary(&[])?;
        let (frame, received) = (self.address(FRAME), self.address(RECEIVED));
        let address = canary.address32()?;
        let read = self.bus_error(address, received, TRANSMIT_STATUS, TRANSMIT_BUS_ERROR);
        let write = self.bus_error(frame, address, RECEIVE_STATUS, RECEIVE_BUS_ERROR);
        canary.judge(read, write, true)
    }

    /// Sends a frame where there is no memory on one of both sides; then one that comes back.
    fn bus_error(
        &mut self,
        from: u32,
        to: u32,
        status: u64,
        error: u32,
    ) -> Result<String, StepError> {
        self.start(from, to, 64)?;
        let region = &*self.region;
        let noticed = self.test.interrupts().wait_for(TIMEOUT, || {
            take_interrupt(region)?;
            let found = region.read32(status)?;
            Ok((found & error != 0).then_some(found))
        })?;
        let Some(found) = noticed else {
            let what = "it went on as if the memory were there: bus errors don't reach it";
            return Err(what.into());
        };
        self.frame(0, 64)?;
        Ok(format!("status {found:#x}; the next frame comes back"))
    }

    /// Has a frame of `length` bytes sent from `from`, and received at `to`.
    fn start(&mut self, from: u32, to: u32, length: usize) -> Result<(), StepError> {
        self.stop_and_clear()?;
        let length = u32::try_from(length).unwrap_or(0);
        let mut receive = Vec::with_capacity(BUFFERS * 8);
        // What isn't the test's memory is a single page.
        let stride = if to == self.address(RECEIVED) { STRIDE } else { 0 };
        for number in (0_u32..).take(BUFFERS) {
            let wrap = if number as usize == BUFFERS - 1 { RECEIVE_WRAP } else { 0 };
            let buffer = to.saturating_add(number.saturating_mul(stride));
            receive.extend([buffer | wrap, 0].iter().flat_map(|word| word.to_le_bytes()));
        }
        self.memory.write(RECEIVE_DESCRIPTORS, &receive);
        let transmit = [from, length | TRANSMIT_LAST, 0, TRANSMITTED | TRANSMIT_WRAP];
        self.memory.write(TRANSMIT_DESCRIPTORS, &transmit.map(u32::to_le_bytes).concat());
        let unused = [RECEIVED_ONE | RECEIVE_WRAP, TRANSMITTED | TRANSMIT_WRAP];
        self.memory.write(UNUSED_DESCRIPTOR, &unused.map(u32::to_le_bytes).concat());

        let region = &*self.region;
        let queues = region.read32(DESIGN_CONFIG6)?;
        for first in [TRANSMIT_QUEUE_Q1, RECEIVE_QUEUE_Q1] {
            let unused = self.address(UNUSED_DESCRIPTOR);
            of_queues(first, queues).try_for_each(|at| region.write32(at, unused))?;
        }
        let config = region.read32(NETWORK_CONFIG)? & INTEGRATION | LOOPBACK_CONFIG;
        region.write32(NETWORK_CONFIG, config)?;
        region.write32(DMA_CONFIG, DMA_SIMPLE)?;
        region.write32(RECEIVE_QUEUE, self.address(RECEIVE_DESCRIPTORS))?;
        region.write32(TRANSMIT_QUEUE, self.address(TRANSMIT_DESCRIPTORS))?;
        region.write32(INT_ENABLE, INT_TESTED)?;
        let control = LOOPBACK_LOCAL | ENABLE_RECEIVE | ENABLE_TRANSMIT;
        // Loopback first: what is on the wire stays there.
        region.write32(NETWORK_CONTROL, LOOPBACK_LOCAL)?;
        region.write32(NETWORK_CONTROL, control)?;
        Ok(region.write32(NETWORK_CONTROL, control | TRANSMIT_START)?)
    }

    /// Stops the controller, and takes what it signalled before.
    fn stop_and_clear(&mut self) -> Result<(), SelfTestError> {
        stop(&*self.region, STOP_TIMEOUT)?;
        self.test.interrupts().take_all()
    }

    /// The bus address of what is at an offset of the memory.
    fn address(&self, offset: usize) -> u32 {
        self.iova.saturating_add(u32::try_from(offset).unwrap_or(0))
    }
}

/// Clears what raised the interrupt, in the one way and in the other.
fn take_interrupt(region: &VfioRegion) -> Result<(), AccessError> {
    let status = region.read32(INT_STATUS)?;
    region.write32(INT_STATUS, status)?;
    // Read back: the line must have fallen before it is unmasked.
    region.read32(INT_STATUS).map(drop)
}

/// Looks for the frame among those received; fails if it is another than was sent.
fn find(memory: &DmaBuffer, frame: &[u8]) -> Result<Option<()>, StepError> {
    for number in 0..BUFFERS {
        let (first, second) = (word(memory, number * 8), word(memory, number * 8 + 4));
        if first & RECEIVED_ONE == 0 {
            break;
        }
        let buffer = memory.read(RECEIVED + number * BUFFER, BUFFER);
        let Some(header) = buffer.get(..HEADER.len()) else { continue };
        if header != HEADER {
            continue;
        }
        let length = (second & RECEIVED_LENGTH) as usize;
        if length != frame.len() || second & RECEIVED_WHOLE != RECEIVED_WHOLE {
            return Err(format!("it came back as {length} bytes ({second:#010x})").into());
        }
        let (found, behind) = buffer.split_at_checked(length).unwrap_or_default();
        let wrong = found.iter().zip(frame).filter(|(found, sent)| found != sent).count();
        // The end of a burst is the controller's.
        let touched = behind.iter().skip(64).filter(|byte| **byte != 0xa5).count();
        if wrong != 0 || touched != 0 {
            return Err(format!("{wrong} bytes of it are wrong, {touched} behind it").into());
        }
        return Ok(Some(()));
    }
    Ok(None)
}

/// The little-endian word at an offset.
fn word(memory: &DmaBuffer, offset: usize) -> u32 {
    memory.read(offset, 4).try_into().map_or(0, u32::from_le_bytes)
}

/// A frame of `length` bytes, each time another.
fn frame(number: usize, length: usize) -> Vec<u8> {
    let mut state = u32::try_from(number).unwrap_or(0).wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    let payload = std::iter::repeat_with(&mut next).flatten();
    HEADER.into_iter().chain(payload).take(length).collect()
}
