//! `--trace`: what a guest's driver does with its device. The device's registers trap, and each access is
//! recorded, a read when the device has answered it, a write before it comes to it; so are its interrupts and
//! what the driver asks for by SCMI.
//!
//! A vCPU puts a record of fixed size into a bounded buffer; a thread of its own makes words of it and writes
//! them. Times are of the host's monotonic clock, from strait's start on.

mod format;
mod function;
mod lines;
mod plan;
mod record;
mod region;
mod sink;
mod stream;
mod table;
mod tap;
#[cfg(test)]
mod testing;
mod vcpu;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use devices::bus::SharedDevice;
use devices::pci::Function;
use devices::scmi::{Call, Scmi};
use devices::sync::lock;
use devices::vfio::node::ScmiNames;
use devices::vfio::register_table::Place;

use self::format::{Format, Names};
use self::function::TracedFunction;
use self::record::{Access, Event, Record};
use self::region::TracedRegion;
use self::sink::Sink;
use self::stream::Stream;
use crate::assigned::AssignedDevices;
use crate::error::Error;
use crate::signals;

pub use self::lines::TracedLines;
pub use self::plan::{TracePlan, plan};
pub use self::vcpu::enter as enter_vcpu;

/// The trace of a device.
pub struct Trace {
    name: String,
    filter: Option<Vec<Place>>,
    trigger: Option<(Vec<Place>, u64)>,
    pc: bool,
    on: AtomicBool,
    stream: Stream,
    /// What the device has by SCMI: of which kind, and its name in the guest.
    firmware: Vec<(&'static str, String)>,
    /// What its thread is made of, until that runs.
    writer: Mutex<Option<(Format, Sink)>>,
}

impl Trace {
    /// Records an access.
    fn note_access(&self, access: Access) {
        let is_in = |places: &[Place]| {
            let end = access.offset.saturating_add(access.width.into());
            let touches = |(region, range): &Place| {
                *region == access.region && range.start < end && access.offset < range.end
            };
            places.iter().any(touches)
        };
        let trigger = self.trigger.as_ref();
        let asks = trigger.is_some_and(|(places, value)| access.value == *value && is_in(places));
        if self.filter.as_ref().is_none_or(|filter| is_in(filter)) {
            self.put(Event::Access(access), asks);
        } else if asks && self.on.load(Ordering::Relaxed) {
            self.stream.ask();
        }
    }

    /// Records something else.
    fn note(&self, event: Event) {
        self.put(event, false);
    }

    fn put(&self, event: Event, ask: bool) {
        if self.on.load(Ordering::Relaxed) {
            let (cpu, pc) = vcpu::current(self.pc);
            self.stream.put(Record { time: 0, cpu, event, pc }, ask);
        }
    }
}

/// What a device has by SCMI: of which kind, as calls have it, and the name in the guest.
fn names_by_scmi(names: &ScmiNames) -> Vec<(&'static str, String)> {
    let clocks = names.clocks.iter().map(|clock| ("clock", clock.name.clone()));
    let resets = names.resets.iter().map(|name| ("reset", name.clone()));
    let domains = names.power_domains.iter().map(|name| ("power domain", name.clone()));
    clocks.chain(resets).chain(domains).collect()
}

/// The traces of a run.
pub struct Tracer {
    traces: Vec<Arc<Trace>>,
    scmi: Option<Arc<Scmi>>,
}

impl Tracer {
    /// Opens these traces of devices, whose times are counted from `started` on. Answers also the devices'
    /// interrupts, for the event loop.
    ///
    /// # Errors
    ///
    /// A file can't be opened.
    #[cold]
    pub fn open(
        plans: Vec<TracePlan>,
        assigned: &AssignedDevices,
        started: Instant,
    ) -> Result<(Arc<Self>, Option<TracedLines>), Error> {
        let (mut traces, mut taps) = (Vec::new(), Vec::new());
        let scmi = assigned.scmi.as_ref();
        for plan in plans {
            let device = assigned.platform.iter().find(|device| device.name() == plan.device);
            let firmware = device.map(|device| names_by_scmi(&device.nodes.scmi));
            let TracePlan { device, is_function, taps: own, .. } = plan;
            let TracePlan { out, format, table, filter, last, trigger, pc, start, .. } = plan;
            let sink = Sink::open(out.as_deref(), &device)?;
            let (interrupts, scmi) = (own.iter().map(|tap| tap.line).collect(), scmi.cloned());
            let names = Names { device: device.clone(), is_function, interrupts, table, scmi };
            let trace = Arc::new(Trace {
                name: device,
                filter,
                trigger,
                pc,
                on: AtomicBool::new(start),
                stream: Stream::new(started, last),
                firmware: firmware.unwrap_or_default(),
                writer: Mutex::new(Some((Format::new(format, names), sink))),
            });
            taps.push((trace.clone(), own));
            traces.push(trace);
        }
        let lines = TracedLines::new(taps.into_iter());
        Ok((Arc::new(Self { traces, scmi: scmi.cloned() }), lines))
    }

    /// A region of the device of this name, recorded if it is traced.
    #[cold]
    pub fn trace(
        &self,
        device: &str,
        index: u32,
        region: Arc<dyn SharedDevice>,
    ) -> Arc<dyn SharedDevice> {
        match self.traces.iter().find(|trace| trace.name == device) {
            Some(trace) => Arc::new(Mutex::new(TracedRegion::new(region, index, trace.clone()))),
            None => region,
        }
    }

    /// The function of this name, recorded if it is traced.
    #[cold]
    pub fn trace_function(
        &self,
        name: &str,
        function: Arc<Mutex<dyn Function>>,
    ) -> Arc<Mutex<dyn Function>> {
        match self.traces.iter().find(|trace| trace.name == name) {
            Some(trace) => Arc::new(Mutex::new(TracedFunction::new(function, trace.clone()))),
            None => function,
        }
    }

    /// Starts the threads that write, each of which calls `enter` first.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    #[cold]
    pub fn start(&self, enter: fn()) -> std::io::Result<()> {
        for trace in &self.traces {
            let Some((format, sink)) = lock(&trace.writer).take() else { continue };
            trace.stream.begin();
            let own = trace.clone();
            // Ends by `finish`, or with the process.
            thread::Builder::new().name("trace-file".to_owned()).spawn(move || {
                enter();
                own.stream.write(format, &sink);
            })?;
        }
        Ok(())
    }

    /// Records a call of SCMI.
    #[cold]
    pub fn note_call(&self, call: Call) {
        let name = self.scmi.as_ref().and_then(|scmi| call.name_in(scmi.resources()));
        let Some(name) = name else { return };
        let named = (call.words().0, name);
        let of = |trace: &&Arc<Trace>| {
            trace.firmware.iter().any(|(kind, own)| (*kind, own.as_str()) == named)
        };
        self.traces.iter().filter(of).for_each(|trace| trace.note(Event::Scmi(call)));
    }

    /// Records that the guest begins anew, and has what is kept of its life written.
    #[cold]
    pub fn note_reset(&self) {
        for trace in &self.traces {
            trace.note(Event::Reset);
            trace.stream.ask();
        }
    }

    /// Records, or records nothing, from here on.
    #[cold]
    pub fn turn(&self, on: bool) {
        self.traces.iter().for_each(|trace| trace.on.store(on, Ordering::Relaxed));
    }

    /// Has all written that is there, when no vCPU runs any more; what is lost is logged.
    #[cold]
    pub fn finish(&self) {
        for trace in &self.traces {
            match trace.stream.finish(signals::is_end_pending) {
                0 => {}
                lost => log::warn!("{}: {lost} events of its trace were lost", trace.name),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_needs_not_be_among_what_is_recorded() {
        let trigger = Some((vec![(0, 0x10..0x14)], 7));
        let trace = |filter| testing::trace(filter, trigger.clone(), Some(4));
        for filter in [None, Some(vec![(0, 0..4)])] {
            let trace = trace(filter);
            for (region, offset, value) in [(0, 0, 7), (0, 0x10, 6), (0, 0x14, 7), (1, 0x10, 7)] {
                trace.note_access(Access::new(true, region, offset, &[value, 0, 0, 0]));
                assert!(!trace.stream.is_asked());
            }
            trace.on.store(false, Ordering::Relaxed);
            trace.note_access(Access::new(true, 0, 0x10, &[7, 0, 0, 0]));
            assert!(!trace.stream.is_asked(), "it is off");
            trace.on.store(true, Ordering::Relaxed);
            trace.note_access(Access::new(true, 0, 0x10, &[7, 0, 0, 0]));
            assert!(trace.stream.is_asked());
        }
    }

    #[test]
    fn what_is_recorded_is_of_its_region() {
        let trace = testing::trace(Some(vec![(1, 4..8)]), None, None);
        for (region, offset) in [(0, 4), (1, 0), (1, 4), (1, 8), (2, 4)] {
            trace.note_access(Access::new(true, region, offset, &[0; 4]));
        }
        assert_eq!(testing::written(&trace, Vec::new(), true), ["write 1:0x004 0x00000000"]);
    }
}
