//! The controller driven without a guest: every event's interrupt, every channel, every byte.
//!
//! TRM (ARM DDI 0424), chapter 2, "Operating states", "Aborts", "Using events and interrupts".

mod abort;
mod buffers;
mod interrupts;
mod isolation;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::buffers::{MARGIN, TransferBuffers};
use super::program::{DataPath, Instruction, Thread, Transfer};
use super::quiesce::{Dmac, stop};
use super::registers::{
    CR0, CRD, ThreadState, buffer_depth, bus_width, channels, events, fault, ftr,
};
use crate::vfio::quiesce::{QuiesceError, poll_timeout};
use crate::vfio::region::{AccessError, RegisterAccess, VfioRegion};
use crate::vfio::selftest::{ChannelResult, SelfTest, SelfTestError, StepError, TestReport};

/// How long a transfer or an interrupt may take. A controller needs microseconds; a modelled one
/// on a busy machine needs more.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long a thread may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(200);

/// How often an interrupt may be signalled late while another is waited for; more is an interrupt that
/// is stuck.
const MAX_LATE: u32 = 64;

/// The largest transfer, in bytes. The first channel makes it: all run the same programs, and a model
/// of the hardware takes seconds for each.
const MAX_TRANSFER: usize = 16 << 20;

/// What each channel copies: length, and how far source and destination are from alignment.
const TRANSFERS: [(usize, usize, usize); 15] = [
    (1, 0, 0),
    (1, 3, 5),
    (2, 1, 0),
    (3, 0, 2),
    (7, 1, 1),
    (8, 0, 0),
    (64, 4, 4),
    (65, 0, 0),
    (127, 2, 6),
    (4095, 0, 0),
    (4096, 0, 0),
    (4097, 1, 3),
    (16384, 5, 0),
    (65537, 0, 0),
    (1 << 20, 8, 16),
];

/// What each channel copies when all run at once, in bytes.
const CONCURRENT_TRANSFER: usize = 64 << 10;

/// Runs the test.
///
/// # Errors
///
/// The host refused something without which nothing can be tested.
#[cold]
pub(super) fn run(test: &mut SelfTest) -> Result<TestReport, SelfTestError> {
    let mut report = TestReport::new("PL330");
    let region = test.regions().first().cloned();
    let region = region.ok_or(QuiesceError::NoRegion(0))?;
    stop(&*region, STOP_TIMEOUT)?;
    let mut driver = Driver::new(test, region)?;
    report.add("controller", Ok::<_, String>(driver.description()));
    let result = driver.run(&mut report);
    // In any case: nobody else should find it active.
    let stopped = stop(&*driver.region, STOP_TIMEOUT);
    driver.test.unmap_all();
    result?;
    report.add("stopped", stopped.map(|()| "all threads, no event"));
    Ok(report)
}

/// The driver of the controller under test.
struct Driver<'a> {
    test: &'a mut SelfTest,
    region: Arc<VfioRegion>,
    channels: u8,
    events: u8,
    path: DataPath,
    buffers: TransferBuffers,
    /// The interrupt that each event raises, as found by signalling it.
    event_irqs: Vec<usize>,
    /// How often an interrupt was signalled that was low already.
    late: u32,
    /// How long an interrupt may take.
    timeout: Duration,
}

impl<'a> Driver<'a> {
    fn new(test: &'a mut SelfTest, region: Arc<VfioRegion>) -> Result<Self, SelfTestError> {
        let (configuration, data) = (region.read32(CR0)?, region.read32(CRD)?);
        let channels = channels(configuration);
        let buffer_beats = (buffer_depth(data) / u32::from(channels)).max(1);
        Ok(Self {
            buffers: TransferBuffers::new(test, channels, MAX_TRANSFER)?,
            test,
            region,
            channels,
            events: u8::try_from(events(configuration).count_ones()).unwrap_or(u8::MAX),
            path: DataPath { width_log2: bus_width(data), buffer_beats },
            event_irqs: Vec::new(),
            late: 0,
            timeout: TIMEOUT,
        })
    }

    fn description(&self) -> String {
        format!(
            "{} channels, {} events, {}-bit bus, {} beats of buffer a channel",
            self.channels,
            self.events,
            8_u32 << self.path.width_log2,
            self.path.buffer_beats
        )
    }

    fn run(&mut self, report: &mut TestReport) -> Result<(), SelfTestError> {
        self.test.interrupts().arm()?;
        report.add_step("interrupts at rest", self.check_quiet())?;
        if !report.add_step("events raise their interrupts", self.find_event_irqs())? {
            return Ok(());
        }
        for channel in 0..self.channels {
            let result = self.test_channel(channel)?;
            report.channels.push(result);
        }
        report.add_step("all channels at once", self.run_all_channels())?;
        let (source, destination) = (self.buffers.source(0), self.buffers.destination(0));
        let unmapped = self.buffers.unmapped();
        report.add_step("an unmapped source aborts", self.abort(unmapped, destination))?;
        report.add_step("an unmapped destination aborts", self.abort(source, unmapped))?;
        report.isolation = Some(self.isolation()?);
        report.add_step("no interrupt too many", self.check_quiet())?;
        Ok(())
    }

    fn dmac(&self) -> Dmac<'_> {
        Dmac { registers: &*self.region, timeout: STOP_TIMEOUT }
    }

    /// Has a channel do all its transfers, with another event each time.
    fn test_channel(&mut self, channel: u8) -> Result<ChannelResult, SelfTestError> {
        let mut result = ChannelResult { channel, ..ChannelResult::default() };
        let rounds = TRANSFERS.len().max(usize::from(self.events));
        let longest = (channel == 0).then_some((MAX_TRANSFER, 0, 0));
        let transfers = TRANSFERS.into_iter().cycle().take(rounds).chain(longest);
        for (number, transfer) in transfers.enumerate() {
            // Channels begin with different events, so that neighbours are told apart.
            let event = (usize::from(channel) + number) % usize::from(self.events.max(1));
            let event = u8::try_from(event).unwrap_or(0);
            match self.transfer(channel, event, transfer) {
                Ok(busy) => result.count(transfer.0 as u64, busy),
                Err(StepError::Device(failure)) => {
                    let failure = format!("{} bytes, event {event}: {failure}", transfer.0);
                    result.failure = Some(failure);
                    self.recover()?;
                    break;
                }
                Err(StepError::Host(error)) => return Err(error),
            }
        }
        Ok(result)
    }

    /// Copies, waits for the interrupt and verifies every byte; the time from start to interrupt.
    fn transfer(
        &mut self,
        channel: u8,
        event: u8,
        (length, from, to): (usize, usize, usize),
    ) -> Result<Duration, StepError> {
        let (from, to) = (MARGIN + from, MARGIN + to);
        self.buffers.clear(from, to, length);
        let started = Instant::now();
        self.start(channel, event, self.copy(from, to, length))?;
        self.take_interrupt(1 << event)?;
        let busy = started.elapsed();
        self.wait_until_stopped(channel)?;
        self.buffers.verify(from, to, length)?;
        Ok(busy)
    }

    /// A copy from an offset of the source to one of the destination.
    fn copy(&self, from: usize, to: usize, length: usize) -> Transfer {
        let (source, destination) = (self.buffers.source(from), self.buffers.destination(to));
        Transfer { source, destination, length: u32::try_from(length).unwrap_or(0) }
    }

    /// Writes a program where the device reads it, and has the manager start it.
    fn start(&self, channel: u8, event: u8, transfer: Transfer) -> Result<(), AccessError> {
        let program = self.buffers.write_program(channel, &transfer.program(self.path, event));
        self.dmac().run(Instruction::go(channel, program), Thread::Manager)
    }

    fn wait_until_stopped(&self, channel: u8) -> Result<(), StepError> {
        let thread = Thread::Channel(channel);
        let ended = poll_timeout(STOP_TIMEOUT, || {
            let state = ThreadState::of(self.dmac().status(thread)?);
            Ok(matches!(state, ThreadState::Stopped | ThreadState::Faulting).then_some(state))
        });
        match ended? {
            Some(ThreadState::Faulting) => {
                Err(format!("it faulted: {}", fault(self.region.read32(ftr(channel))?)).into())
            }
            Some(_) => Ok(()),
            None => Err("it signalled its end, and didn't end".to_owned().into()),
        }
    }

    /// Starts every channel before the first is waited for.
    fn run_all_channels(&mut self) -> Result<String, StepError> {
        // No more channels than events, or they couldn't be told apart.
        let count = self.channels.min(self.events);
        let stride = CONCURRENT_TRANSFER + 2 * MARGIN;
        let offsets: Vec<usize> = (0..usize::from(count)).map(|n| MARGIN + n * stride).collect();
        for offset in &offsets {
            self.buffers.clear(*offset, *offset, CONCURRENT_TRANSFER);
        }
        let started = Instant::now();
        for (channel, offset) in (0..count).zip(&offsets) {
            self.start(channel, channel, self.copy(*offset, *offset, CONCURRENT_TRANSFER))?;
        }
        let mut left = (1_u32 << count) - 1;
        while left != 0 {
            let (_, events) = self.take_interrupt(left)?;
            left &= !events;
        }
        let busy = started.elapsed();
        for (channel, offset) in (0..count).zip(&offsets) {
            self.wait_until_stopped(channel)?;
            self.buffers.verify(*offset, *offset, CONCURRENT_TRANSFER)?;
        }
        let bytes = usize::from(count) * CONCURRENT_TRANSFER;
        Ok(format!("{count} channels, {bytes} bytes in {} us", busy.as_micros()))
    }
}
