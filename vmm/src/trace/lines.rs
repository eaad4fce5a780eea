//! The interrupts of traced devices, in the event loop: it records each signal and passes it on.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Trace;
use super::record::Event;
use super::tap::Tap;

/// Of event data: it is the end of an interrupt. The rest is the line's number.
const ENDED: u32 = 1 << 31;

/// The lines of traced devices.
pub struct TracedLines(Vec<TracedLine>);

struct TracedLine {
    trace: Arc<Trace>,
    /// Among its device's.
    number: usize,
    tap: Tap,
}

impl TracedLines {
    /// Those of these devices; `None` if they have none.
    pub fn new(devices: impl Iterator<Item = (Arc<Trace>, Vec<Tap>)>) -> Option<Self> {
        let of_device = |(trace, taps): (Arc<Trace>, Vec<Tap>)| {
            let lines = taps.into_iter().enumerate();
            lines.map(move |(number, tap)| TracedLine { trace: trace.clone(), number, tap })
        };
        let lines: Vec<_> = devices.flat_map(of_device).collect();
        (!lines.is_empty()).then_some(Self(lines))
    }
}

impl MutEventSubscriber for TracedLines {
    fn init(&mut self, ops: &mut EventOps) {
        for (number, line) in (0..).zip(&self.0) {
            let (fired, ended) = line.tap.polled();
            let polled = [(fired, number), (ended, number | ENDED)];
            for (event, data) in polled.into_iter().filter_map(|(event, data)| Some((event?, data)))
            {
                if let Err(error) = ops.add(Events::with_data(event, data, EventSet::IN)) {
                    log::error!(
                        "{}: its interrupt {} doesn't reach the guest, the event loop can't poll it: \
                         {error}",
                        line.trace.name,
                        line.tap.line
                    );
                }
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        let (number, is_end) = (events.data() & !ENDED, events.data() & ENDED != 0);
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(TracedLine { trace, number, tap }) = self.0.get(number) else { return };
        // Recorded first: the guest answers as soon as it is passed on. What was forgotten by a reset in the
        // meantime is none.
        if is_end {
            tap.pass_ended(|| trace.note(Event::Ended(*number)));
        } else {
            tap.pass_fired(|count| trace.note(Event::Interrupt(*number, count)));
        }
    }
}
