//! The interrupt lines of assigned devices as statistics tell of them, and those that are stuck.
//!
//! The VMM takes no part in an interrupt, so it can count none. What is known is put together from
//! what the kernel tells at the time of asking: how often the host handled the line, and where its
//! last signal is on its way to the guest and back (see `devices::vfio::irq`). One that stays
//! somewhere for a second without a new one being handled is stuck there.

mod host;
mod vgic;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::irq::{Spi, Trigger};
use devices::vfio::host::Host;
use serde::Serialize;

use self::host::HostLine;
use self::vgic::SpiState;

/// How long a signal may be on its way: guests handle interrupts within microseconds, on a busy host
/// within milliseconds.
const STUCK: Duration = Duration::from_secs(1);

/// A line to watch.
#[derive(Clone, Debug)]
pub struct Wire {
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

/// Where a line's last signal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Nowhere: all were seen through, as far as can be told.
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

/// What is told of a line.
#[derive(Debug, Serialize)]
pub struct Report {
    device: String,
    index: usize,
    spi: u32,
    level: bool,
    /// The guest has it enabled; `None` if the kernel doesn't tell.
    enabled: Option<bool>,
    /// How often the host handled it since the guest has it; `None` if the kernel doesn't tell.
    fired: Option<u64>,
    /// Of these, how many KVM has taken.
    injected: Option<u64>,
    /// Of these, how many the guest has ended and VFIO has unmasked the line for; of level
    /// interrupts only, and if the kernel tells.
    resampled: Option<u64>,
    /// Where the last one is.
    awaiting: Stage,
    /// For how long it has been seen there, in ms.
    awaiting_ms: u64,
    stuck: bool,
}

/// Watches lines.
pub struct Lines {
    wires: Vec<Watched>,
    looks: Mutex<Vec<Look>>,
}

struct Watched {
    wire: Wire,
    /// The host's number of the line at its interrupt controller.
    host: Option<u32>,
    /// How often the host had handled it before.
    before: u64,
}

/// What was seen of a line, and when for the first time.
#[derive(Clone, Copy, Debug)]
struct Look {
    stage: Stage,
    fired: Option<u64>,
    since: Instant,
}

impl Lines {
    /// Watches these lines from now on; they must not be armed yet.
    #[cold]
    pub fn new(wires: Vec<Wire>) -> Self {
        if wires.is_empty() {
            return Self { wires: Vec::new(), looks: Mutex::default() };
        }
        let table = host::table();
        let host = Host::default();
        let mut numbers = BTreeMap::new();
        let wires: Vec<Watched> = wires
            .into_iter()
            .map(|wire| {
                let of_device = numbers
                    .entry(wire.device.clone())
                    .or_insert_with(|| host::numbers(&host, &wire.device));
                let number = of_device.get(wire.index).copied();
                let before = number.and_then(|n| table.get(&n)).map_or(0, |line| line.count);
                Watched { wire, host: number, before }
            })
            .collect();
        Self { wires, looks: Mutex::default() }
    }

    /// Whether the host has handled an interrupt of this device since the guest has it.
    #[cold]
    pub fn have_fired(&self, device: &str) -> bool {
        let table = host::table();
        self.wires.iter().filter(|watched| watched.wire.device == device).any(|watched| {
            let line = watched.host.and_then(|number| table.get(&number));
            line.is_some_and(|line| line.count > watched.before)
        })
    }

    /// Looks at all lines.
    #[cold]
    pub fn report(&self) -> Vec<Report> {
        if self.wires.is_empty() {
            return Vec::new();
        }
        let table = host::table();
        let spis = vgic::spis(std::process::id());
        let now = Instant::now();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut earlier = looks.drain(..);
        let mut later = Vec::with_capacity(self.wires.len());
        let mut reports = Vec::with_capacity(self.wires.len());
        for watched in &self.wires {
            let line = watched.host.and_then(|number| table.get(&number));
            let state = State::of(&watched.wire, line, spis.get(&watched.wire.spi.0));
            let fired = line.map(|line| line.count.saturating_sub(watched.before));
            let look = Look::next(earlier.next(), state.stage(), fired, now);
            reports.push(watched.wire.report(&state, &look, now));
            later.push(look);
        }
        drop(earlier);
        *looks = later;
        for report in reports.iter().filter(|report| report.stuck) {
            log::warn!(
                "{}: interrupt {} is stuck: {}, for {} ms",
                report.device,
                report.index,
                report.awaiting.text(),
                report.awaiting_ms
            );
        }
        reports
    }
}

impl Report {
    /// The guest's SPI, and whether it has that enabled.
    pub fn enabled(&self) -> (u32, Option<bool>) {
        (self.spi, self.enabled)
    }
}

impl Look {
    /// The look at a line that was seen as `earlier` before: the same while nothing has moved.
    fn next(earlier: Option<Self>, stage: Stage, fired: Option<u64>, now: Instant) -> Self {
        let unmoved = earlier.filter(|earlier| (earlier.stage, earlier.fired) == (stage, fired));
        unmoved.unwrap_or(Self { stage, fired, since: now })
    }
}

/// What the kernel tells of a line.
#[derive(Clone, Copy, Debug, Default)]
struct State {
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

impl State {
    fn of(wire: &Wire, line: Option<&HostLine>, spi: Option<&SpiState>) -> Self {
        let level = wire.trigger == Trigger::Level;
        Self {
            untaken: pending(wire.fired),
            unended: wire.resample.map_or(0, pending),
            asserted: spi.map(|spi| spi.high).filter(|_| level),
            enabled: spi.map(|spi| spi.enabled),
            masked: line.and_then(|line| line.masked).filter(|_| level),
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

impl Wire {
    fn report(&self, state: &State, look: &Look, now: Instant) -> Report {
        let waited = now.saturating_duration_since(look.since);
        let waited = if look.stage == Stage::Idle { Duration::ZERO } else { waited };
        // The host masks a level line each time, so that at most one signal is on its way.
        let on_its_way = u64::from(look.stage != Stage::Idle);
        let resampled = look.fired.filter(|_| state.asserted.is_some());
        Report {
            device: self.device.clone(),
            index: self.index,
            spi: self.spi.0,
            level: self.trigger == Trigger::Level,
            enabled: state.enabled,
            fired: look.fired,
            injected: look.fired.map(|fired| fired.saturating_sub(state.untaken)),
            resampled: resampled.map(|fired| fired.saturating_sub(on_its_way)),
            awaiting: look.stage,
            awaiting_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            stuck: waited >= STUCK,
        }
    }
}

/// The count of an eventfd that nobody has taken (`/proc/PID/fdinfo`,
/// Documentation/filesystems/proc.rst, "Eventfd files").
fn pending(fd: RawFd) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    count(&text)
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
        let state = |untaken, asserted, unended, masked| State {
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
        let wire = Wire {
            device: "1.dma".into(),
            index: 3,
            spi: Spi(67),
            trigger: Trigger::Level,
            fired: -1,
            resample: None,
        };
        let state = State { asserted: Some(true), ..State::default() };
        // When, where, fired; stuck?
        let looks = [
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
        for (ms, stage, fired, stuck) in looks {
            let look = Look::next(earlier, stage, Some(fired), at(ms));
            assert_eq!(wire.report(&state, &look, at(ms)).stuck, stuck, "{ms}");
            earlier = Some(look);
        }
        let look = Look::next(None, Stage::Guest, Some(5), start);
        let report = wire.report(&state, &look, start);
        assert_eq!((report.fired, report.injected, report.resampled), (Some(5), Some(5), Some(4)));
    }

    #[test]
    fn an_eventfd_s_count_is_hexadecimal() {
        assert_eq!(count("pos:\t0\nflags:\t02\neventfd-count:               1f\n"), 31);
        assert_eq!(count("pos:\t0\n"), 0);
    }
}
