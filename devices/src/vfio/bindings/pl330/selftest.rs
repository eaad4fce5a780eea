//! The controller driven without a guest: every event line, every channel, every byte.
//!
//! TRM (ARM DDI 0424), chapter 2, "Operating states", "Aborts", "Using events and interrupts".

mod abort;
mod buffers;
mod interrupts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::buffers::{MARGIN, TransferBuffers};
use super::copy::{Bus, Copy};
use super::program::{Instruction, Thread};
use super::quiesce::{Dmac, quiesce};
use super::registers::{CR0, CRD, State, buffer_depth, bus_width, channels, events, fault, ftr};
use crate::vfio::quiesce::{QuiesceError, poll_timeout};
use crate::vfio::region::{AccessError, Region, RegisterAccess};
use crate::vfio::selftest::{ChannelResult, SelfTest, SelfTestError, TestReport};

/// How long a transfer or an interrupt may take. A controller needs microseconds; a modelled one
/// on a busy machine needs more.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a thread may take to stop.
const STOPPING: Duration = Duration::from_millis(200);

/// How often a line may be told too late while one interrupt is waited for; more is a line that is
/// stuck.
const LATE_MAX: u32 = 64;

/// The largest transfer, in bytes.
const LARGEST: usize = 16 << 20;

/// What each channel copies: length, and how far source and destination are from alignment.
const TRANSFERS: [(usize, usize, usize); 16] = [
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
    (LARGEST, 0, 0),
];

/// What all channels copy at once, in bytes.
const TOGETHER: usize = 64 << 10;

/// Runs the test.
///
/// # Errors
///
/// The host refused something without which nothing can be tested.
#[cold]
pub(super) fn test(test: &mut SelfTest) -> Result<TestReport, SelfTestError> {
    let mut report = TestReport::new("PL330");
    let region = test.regions().first().cloned();
    let region = region.ok_or(QuiesceError::NoRegion(0))?;
    quiesce(&*region, STOPPING)?;
    let mut driver = Driver::new(test, region)?;
    report.add("controller", Ok(driver.description()));
    let worked = driver.run(&mut report);
    // In any case: nobody else should find it at work.
    let quiet = quiesce(&*driver.region, STOPPING);
    driver.test.unmap_all();
    worked?;
    report
        .add("stopped", quiet.map(|()| "all threads, no event".into()).map_err(|e| e.to_string()));
    Ok(report)
}

/// Why a transfer, or whatever else the device was to do, failed.
enum TestFailure {
    /// The device didn't do it: what it did instead.
    Device(String),
    /// The host can't go on.
    Host(SelfTestError),
}

impl From<SelfTestError> for TestFailure {
    fn from(error: SelfTestError) -> Self {
        Self::Host(error)
    }
}

impl From<AccessError> for TestFailure {
    fn from(error: AccessError) -> Self {
        Self::Host(error.into())
    }
}

/// Sorts what the device did from what the host can't.
fn told(result: Result<String, TestFailure>) -> Result<Result<String, String>, SelfTestError> {
    match result {
        Ok(detail) => Ok(Ok(detail)),
        Err(TestFailure::Device(why)) => Ok(Err(why)),
        Err(TestFailure::Host(error)) => Err(error),
    }
}

struct Driver<'a> {
    test: &'a mut SelfTest,
    region: Arc<Region>,
    channels: u8,
    events: u8,
    bus: Bus,
    stage: TransferBuffers,
    /// The line that each event raises, by the device's own word.
    lines: Vec<usize>,
    /// How often a line was told that was low already.
    late: u32,
    /// How long an interrupt may take.
    patience: Duration,
}

impl<'a> Driver<'a> {
    fn new(test: &'a mut SelfTest, region: Arc<Region>) -> Result<Self, SelfTestError> {
        let (configuration, data) = (region.read32(CR0)?, region.read32(CRD)?);
        let channels = channels(configuration);
        let events = u8::try_from(events(configuration).count_ones()).unwrap_or(u8::MAX);
        let room = buffer_depth(data) / u32::from(channels);
        let bus = Bus { width: bus_width(data), room: room.max(1) };
        let stage = TransferBuffers::new(test, channels, LARGEST)?;
        Ok(Self {
            test,
            region,
            channels,
            events,
            bus,
            stage,
            lines: Vec::new(),
            late: 0,
            patience: PATIENCE,
        })
    }

    fn description(&self) -> String {
        format!(
            "{} channels, {} events, {}-bit bus, {} beats of buffer a channel",
            self.channels,
            self.events,
            8_u32 << self.bus.width,
            self.bus.room
        )
    }

    fn run(&mut self, report: &mut TestReport) -> Result<(), SelfTestError> {
        self.test.lines().arm()?;
        report.add("interrupts at rest", told(self.check_quiet())?);
        let found = told(self.find_lines())?;
        let usable = found.is_ok();
        report.add("events raise their interrupts", found);
        if !usable {
            return Ok(());
        }
        for channel in 0..self.channels {
            let row = self.exercise(channel)?;
            report.channels.push(row);
        }
        report.add("all channels at once", told(self.all_at_once())?);
        let reading = told(self.abort(self.stage.hole(), self.stage.destination(0)))?;
        report.add("an unmapped source aborts", reading);
        let writing = told(self.abort(self.stage.source(0), self.stage.hole()))?;
        report.add("an unmapped destination aborts", writing);
        report.add("no interrupt too many", told(self.check_quiet())?);
        Ok(())
    }

    fn dmac(&self) -> Dmac<'_> {
        Dmac { registers: &*self.region, patience: STOPPING }
    }

    /// Has a channel do all its transfers, with another event each time.
    fn exercise(&mut self, channel: u8) -> Result<ChannelResult, SelfTestError> {
        let mut row = ChannelResult { channel, ..ChannelResult::default() };
        let rounds = TRANSFERS.len().max(usize::from(self.events));
        for (number, transfer) in TRANSFERS.iter().cycle().take(rounds).enumerate() {
            // Channels begin with different events, so that neighbours are told apart.
            let event = (usize::from(channel) + number) % usize::from(self.events.max(1));
            let event = u8::try_from(event).unwrap_or(0);
            match self.transfer(channel, event, *transfer) {
                Ok(busy) => {
                    row.transfers += 1;
                    row.bytes += transfer.0 as u64;
                    row.interrupts += 1;
                    row.busy += busy;
                }
                Err(TestFailure::Device(why)) => {
                    row.failure = Some(format!("{} bytes, event {event}: {why}", transfer.0));
                    self.recover()?;
                    return Ok(row);
                }
                Err(TestFailure::Host(error)) => return Err(error),
            }
        }
        Ok(row)
    }

    /// PhandleMap, waits for the interrupt and verifies every byte; the time from start to interrupt.
    fn transfer(
        &mut self,
        channel: u8,
        event: u8,
        (length, from, to): (usize, usize, usize),
    ) -> Result<Duration, TestFailure> {
        let (from, to) = (MARGIN + from, MARGIN + to);
        self.stage.spoil(from, to, length);
        let started = Instant::now();
        self.start(channel, event, self.copy(from, to, length))?;
        self.take_interrupt(1 << event)?;
        let busy = started.elapsed();
        self.wait_until_stopped(channel)?;
        self.stage.verify(from, to, length).map_err(TestFailure::Device)?;
        Ok(busy)
    }

    fn copy(&self, from: usize, to: usize, length: usize) -> Copy {
        let length = u32::try_from(length).unwrap_or(0);
        Copy { source: self.stage.source(from), destination: self.stage.destination(to), length }
    }

    /// Puts a program where the device reads it, and has the manager start it.
    fn start(&self, channel: u8, event: u8, copy: Copy) -> Result<(), TestFailure> {
        let program = self.stage.program(channel, &copy.program(self.bus, event));
        Ok(self.dmac().run(Instruction::go(channel, program), Thread::Manager)?)
    }

    fn wait_until_stopped(&self, channel: u8) -> Result<(), TestFailure> {
        let thread = Thread::Channel(channel);
        let ended = poll_timeout(STOPPING, || {
            let state = State::of(self.dmac().status(thread)?);
            Ok(matches!(state, State::Stopped | State::Faulting).then_some(state))
        });
        match ended? {
            Some(State::Faulting) => {
                let why = fault(self.region.read32(ftr(channel))?);
                Err(TestFailure::Device(format!("it faulted: {why}")))
            }
            Some(_) => Ok(()),
            None => Err(TestFailure::Device("it signalled its end, and didn't end".into())),
        }
    }

    /// Starts every channel before the first is waited for.
    fn all_at_once(&mut self) -> Result<String, TestFailure> {
        // No more channels than events, or they couldn't be told apart.
        let count = self.channels.min(self.events);
        let stride = TOGETHER + 2 * MARGIN;
        let places: Vec<usize> = (0..usize::from(count)).map(|n| MARGIN + n * stride).collect();
        for place in &places {
            self.stage.spoil(*place, *place, TOGETHER);
        }
        let started = Instant::now();
        for (channel, place) in (0..count).zip(&places) {
            self.start(channel, channel, self.copy(*place, *place, TOGETHER))?;
        }
        let mut left = (1_u32 << count) - 1;
        while left != 0 {
            let (_, events) = self.take_interrupt(left)?;
            left &= !events;
        }
        let busy = started.elapsed();
        for (channel, place) in (0..count).zip(&places) {
            self.wait_until_stopped(channel)?;
            self.stage.verify(*place, *place, TOGETHER).map_err(TestFailure::Device)?;
        }
        let bytes = usize::from(count) * TOGETHER;
        Ok(format!("{count} channels, {bytes} bytes in {} us", busy.as_micros()))
    }
}
