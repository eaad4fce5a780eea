//! A region of a traced device on the bus.

use std::sync::Arc;

use devices::bus::{Action, MmioDevice, SharedDevice};

use super::Trace;
use super::record::Access;

/// A region whose accesses are recorded, in the order in which the device has them: a write first, for the
/// interrupt that it may cause comes at once.
pub struct TracedRegion {
    region: Arc<dyn SharedDevice>,
    index: u32,
    trace: Arc<Trace>,
}

impl TracedRegion {
    /// This region, of this index.
    pub fn new(region: Arc<dyn SharedDevice>, index: u32, trace: Arc<Trace>) -> Self {
        Self { region, index, trace }
    }
}

impl MmioDevice for TracedRegion {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.region.read(offset, data);
        self.trace.note_access(Access::new(false, self.index, offset, data));
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        self.trace.note_access(Access::new(true, self.index, offset, data));
        self.region.write(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Event, Line};
    use super::super::testing;
    use super::*;

    /// Its interrupt is seen before a write to it is done.
    struct Prompt(Arc<Trace>);

    impl SharedDevice for Prompt {
        fn read(&self, _: u64, data: &mut [u8]) {
            self.0.note(Event::Ended(0));
            data.fill(7);
        }

        fn write(&self, _: u64, _: &[u8]) -> Action {
            self.0.note(Event::Interrupt(0, 1));
            Action::None
        }
    }

    #[test]
    fn what_a_write_causes_comes_behind_it_and_a_read_behind_what_it_depends_on() {
        let trace = testing::trace(None, None, None);
        let mut region = TracedRegion::new(Arc::new(Prompt(trace.clone())), 0, trace.clone());
        assert_eq!(region.write(0, &[1]), Action::None);
        region.read(4, &mut [0]);

        let interrupts = vec![Line { kind: "", number: 0, ends: true }];
        let events = testing::written(&trace, interrupts, false);
        let expected = ["write 0x000 0x01", "interrupt 0", "interrupt 0 ended", "read  0x004 0x07"];
        assert_eq!(events, expected);
    }
}
