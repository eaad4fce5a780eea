//! A region of a traced device on the bus.

use std::sync::Arc;

use devices::bus::{Action, MmioDevice, SharedDevice};

use super::Trace;
use super::record::Access;

/// A region whose accesses are recorded, in the order in which the device has them.
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
        let action = self.region.write(offset, data);
        self.trace.note_access(Access::new(true, self.index, offset, data));
        action
    }
}
