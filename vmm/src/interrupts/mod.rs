//! The interrupt lines of assigned devices as statistics tell of them, and those that are stuck.
//!
//! The VMM takes no part in an interrupt, so it can't count them. The statistics are derived from what
//! the kernel reports when they are written: how often the host handled the line, and which of the steps
//! from the host to the guest and back its last signal has reached (see `devices::vfio::irq`). A line that
//! stays at a step for a second without handling a new signal is stuck.

mod kernel;

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use devices::irq::{Spi, Trigger};
use devices::sync;
use devices::vfio::host::Host;
use serde::Serialize;

use self::kernel::{HostLine, SpiState};
use crate::kernel_files;

pub use self::kernel::{interrupt_table, keep_interrupt_table};

/// How long a signal may be on its way: guests handle interrupts within microseconds, on a busy host
/// within milliseconds.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// A line to watch.
#[derive(Clone, Debug)]
pub struct Line {
    /// The device's name in sysfs.
    pub device: String,
    /// The interrupt's index with VFIO.
    pub index: usize,
    /// The guest's SPI.
    pub spi: Spi,
    /// How it signals.
    pub trigger: Trigger,
    /// The eventfd that VFIO signals.
    pub fired: RawFd,
    /// The eventfd that KVM signals at the guest's end of interrupt.
    pub resample: Option<RawFd>,
}

/// The step that a line's last signal has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// No signal is pending, as far as is known.
    Idle,
    /// KVM has not taken it yet.
    Kvm,
    /// The guest has not ended the interrupt.
    Guest,
    /// VFIO has not unmasked the line.
    Vfio,
    /// The line is masked and nothing is on its way to unmask it.
    Lost,
}

impl Stage {
    fn text(self) -> &'static str {
        match self {
            Self::Idle => "nothing is on its way",
            Self::Kvm => "KVM hasn't taken its signal",
            Self::Guest => "the guest hasn't ended it",
            Self::Vfio => "VFIO hasn't unmasked its line",
            Self::Lost => "its line is masked and nothing will unmask it",
        }
    }
}

/// The statistics of a line.
#[derive(Debug, Serialize)]
pub struct LineStats {
    device: String,
    index: usize,
    spi: u32,
    level: bool,
    /// The guest has it enabled; `None` if the kernel doesn't report it.
    enabled: Option<bool>,
    /// How often the host handled it since the guest has it; `None` if the kernel doesn't report it.
    fired: Option<u64>,
    /// Of these, how many KVM has taken.
    injected: Option<u64>,
    /// Of these, how many the guest has ended and VFIO has unmasked the line for; of level
    /// interrupts only, and if the kernel reports it.
    resampled: Option<u64>,
    /// The step that the last one has reached.
    awaiting: Stage,
    /// How long it has been there, in ms.
    awaiting_ms: u64,
    stuck: bool,
}

/// Watches lines.
pub struct LineMonitor(Mutex<Vec<MonitoredLine>>);

struct MonitoredLine {
    line: Line,
    /// The INTID of the line at the host's interrupt controller.
    host: Option<u32>,
    /// How often the host had handled it before the guest had it.
    before: u64,
    /// What was seen of it last.
    last: Option<Sample>,
}

/// What was seen of a line, and when for the first time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    stage: Stage,
    fired: Option<u64>,
    since: Instant,
}

impl LineMonitor {
    /// Watches these lines from now on; they must not be armed yet.
    pub fn new(lines: Vec<Line>) -> Self {
        let lines = if lines.is_empty() { Vec::new() } else { monitored(lines) };
        Self(Mutex::new(lines))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<MonitoredLine>> {
        sync::lock(&self.0)
    }

    /// Keeps open what [`report`](Self::report) reads, which may be all that it can read then. The lines
    /// must be connected.
    #[cold]
    pub fn keep_files(&self) {
        let lines = self.lock();
        if lines.is_empty() {
            return;
        }
        kernel::keep_lines();
        let eventfds = lines.iter().flat_map(|monitored| {
            [Some(monitored.line.fired), monitored.line.resample].into_iter().flatten()
        });
        eventfds.for_each(|fd| kernel_files::keep(&fdinfo(fd)));
    }

    /// The most descriptors that [`keep_files`](Self::keep_files) takes for so many lines.
    pub fn max_files(lines: usize) -> usize {
        lines.saturating_mul(3).saturating_add(1)
    }

    /// Whether the host has handled an interrupt of this device since the guest has it.
    #[cold]
    pub fn have_fired(&self, device: &str) -> bool {
        let table = kernel::host_lines();
        let lines = self.lock();
        let mut of_device = lines.iter().filter(|monitored| monitored.line.device == device);
        of_device.any(|monitored| monitored.fired(&table).is_some_and(|fired| fired > 0))
    }

    /// Samples all lines, and warns of those that are stuck.
    #[cold]
    pub fn report(&self) -> Vec<LineStats> {
        let mut lines = self.lock();
        if lines.is_empty() {
            return Vec::new();
        }
        let (table, spis) = (kernel::host_lines(), kernel::guest_spis());
        let now = Instant::now();
        let stats: Vec<_> = lines.iter_mut().map(|line| line.report(&table, &spis, now)).collect();
        for LineStats { device, index, awaiting, awaiting_ms, .. } in
            stats.iter().filter(|stats| stats.stuck)
        {
            let where_it_is = awaiting.text();
            log::warn!("{device}: interrupt {index} is stuck: {where_it_is}, for {awaiting_ms} ms");
        }
        stats
    }
}

#[cold]
fn monitored(lines: Vec<Line>) -> Vec<MonitoredLine> {
    let (table, host) = (kernel::host_lines(), Host::default());
    let mut numbers = BTreeMap::new();
    let monitored = lines.into_iter().map(|line| {
        let of_device = numbers
            .entry(line.device.clone())
            .or_insert_with(|| kernel::host_numbers(&host, &line.device));
        let number = of_device.get(line.index).copied();
        let before = number.and_then(|number| table.get(&number)).map_or(0, |line| line.count);
        MonitoredLine { line, host: number, before, last: None }
    });
    monitored.collect()
}

impl MonitoredLine {
    /// How often the host has handled it since the guest has it.
    fn fired(&self, table: &BTreeMap<u32, HostLine>) -> Option<u64> {
        Some(table.get(&self.host?)?.count.saturating_sub(self.before))
    }

    fn report(
        &mut self,
        table: &BTreeMap<u32, HostLine>,
        spis: &BTreeMap<u32, SpiState>,
        now: Instant,
    ) -> LineStats {
        let host = self.host.and_then(|number| table.get(&number));
        let state = LineState::of(&self.line, host, spis.get(&self.line.spi.0));
        let sample = Sample::next(self.last, state.stage(), self.fired(table), now);
        self.last = Some(sample);
        self.line.stats(&state, &sample, now)
    }
}

impl LineStats {
    /// The guest's SPI, and whether it has that enabled.
    pub fn enabled(&self) -> (u32, Option<bool>) {
        (self.spi, self.enabled)
    }
}

impl Sample {
    /// The sample of a line that was seen as `earlier` before: the same while nothing has moved.
    fn next(earlier: Option<Self>, stage: Stage, fired: Option<u64>, now: Instant) -> Self {
        let unmoved = earlier.filter(|earlier| (earlier.stage, earlier.fired) == (stage, fired));
        unmoved.unwrap_or(Self { stage, fired, since: now })
    }
}

/// What the kernel reports of a line.
#[derive(Clone, Copy, Debug, Default)]
struct LineState {
    /// Signals that KVM has not taken.
    untaken: u64,
    /// Ends of interrupt that VFIO has not taken.
    unended: u64,
    /// KVM asserts the SPI.
    asserted: Option<bool>,
    /// The guest has the SPI enabled.
    enabled: Option<bool>,
    /// The host has the line masked.
    masked: Option<bool>,
}

impl LineState {
    fn of(line: &Line, host: Option<&HostLine>, spi: Option<&SpiState>) -> Self {
        let level = line.trigger == Trigger::Level;
        Self {
            untaken: pending(line.fired),
            unended: line.resample.map_or(0, pending),
            asserted: spi.map(|spi| spi.high).filter(|_| level),
            enabled: spi.map(|spi| spi.enabled),
            masked: host.and_then(|host| host.masked).filter(|_| level),
        }
    }

    fn stage(&self) -> Stage {
        match self {
            Self { untaken: 1.., .. } => Stage::Kvm,
            Self { asserted: Some(true), .. } => Stage::Guest,
            Self { unended: 1.., .. } => Stage::Vfio,
            Self { masked: Some(true), asserted: Some(false), .. } => Stage::Lost,
            _ => Stage::Idle,
        }
    }
}

impl Line {
    fn stats(&self, state: &LineState, sample: &Sample, now: Instant) -> LineStats {
        let waited = now.saturating_duration_since(sample.since);
        let waited = if sample.stage == Stage::Idle { Duration::ZERO } else { waited };
        // The host masks a level line each time, so that at most one signal is on its way.
        let on_its_way = u64::from(sample.stage != Stage::Idle);
        let resampled = sample.fired.filter(|_| state.asserted.is_some());
        LineStats {
            device: self.device.clone(),
            index: self.index,
            spi: self.spi.0,
            level: self.trigger == Trigger::Level,
            enabled: state.enabled,
            fired: sample.fired,
            injected: sample.fired.map(|fired| fired.saturating_sub(state.untaken)),
            resampled: resampled.map(|fired| fired.saturating_sub(on_its_way)),
            awaiting: sample.stage,
            awaiting_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            stuck: waited >= STUCK_AFTER,
        }
    }
}

/// The count of an eventfd that nobody has taken (`/proc/PID/fdinfo`,
/// Documentation/filesystems/proc.rst, "Eventfd files").
fn pending(fd: RawFd) -> u64 {
    count(&kernel_files::read(&fdinfo(fd)).unwrap_or_default())
}

fn fdinfo(fd: RawFd) -> String {
    format!("/proc/self/fdinfo/{fd}")
}

fn count(fdinfo: &str) -> u64 {
    let value = fdinfo.lines().find_map(|line| line.strip_prefix("eventfd-count:"));
    value.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_is_the_first_that_holds_the_signal() {
        let state = |untaken, asserted, unended, masked| LineState {
            untaken,
            unended,
            asserted,
            masked,
            enabled: None,
        };
        let (yes, no) = (Some(true), Some(false));
        for (state, stage) in [
            (state(0, no, 0, no), Stage::Idle),
            (state(0, None, 0, None), Stage::Idle),
            (state(0, no, 0, None), Stage::Idle),
            (state(1, no, 0, yes), Stage::Kvm),
            (state(0, yes, 0, yes), Stage::Guest),
            (state(0, no, 1, yes), Stage::Vfio),
            (state(0, no, 0, yes), Stage::Lost),
            // What KVM thinks isn't known: nothing can be said of being lost.
            (state(0, None, 0, yes), Stage::Idle),
        ] {
            assert_eq!(state.stage(), stage, "{state:?}");
        }
    }

    #[test]
    fn a_line_is_stuck_when_nothing_has_moved_for_a_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let line = Line {
            device: "1.dma".into(),
            index: 3,
            spi: Spi(67),
            trigger: Trigger::Level,
            fired: -1,
            resample: None,
        };
        let state = LineState { asserted: Some(true), ..LineState::default() };
        // When, where, fired; stuck?
        let samples = [
            (0, Stage::Guest, 1, false),
            (900, Stage::Guest, 1, false),
            (1000, Stage::Guest, 1, true),
            (1100, Stage::Guest, 2, false),
            (2000, Stage::Kvm, 2, false),
            (2500, Stage::Guest, 2, false),
            (3500, Stage::Guest, 2, true),
            (3600, Stage::Idle, 2, false),
            (9000, Stage::Idle, 2, false),
        ];
        let mut earlier = None;
        for (ms, stage, fired, stuck) in samples {
            let sample = Sample::next(earlier, stage, Some(fired), at(ms));
            assert_eq!(line.stats(&state, &sample, at(ms)).stuck, stuck, "{ms}");
            earlier = Some(sample);
        }
        let sample = Sample::next(None, Stage::Guest, Some(5), start);
        let report = line.stats(&state, &sample, start);
        assert_eq!((report.fired, report.injected, report.resampled), (Some(5), Some(5), Some(4)));
    }

    #[test]
    fn an_eventfd_s_count_is_hexadecimal() {
        assert_eq!(count("pos:\t0\nflags:\t02\neventfd-count:               1f\n"), 31);
        assert_eq!(count("pos:\t0\n"), 0);
    }
}
