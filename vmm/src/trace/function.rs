//! A traced PCI function behind the guest's host bridge.

use std::sync::{Arc, Mutex, MutexGuard};

use devices::pci::{BarRange, Function};
use devices::sync::lock;
use devices::vfio::pci::CONFIG_REGION;

use super::Trace;
use super::record::Access;

/// A function whose accesses are recorded, in the order in which it has them: a write first, for the interrupt
/// that it may cause comes at once.
pub struct TracedFunction {
    function: Arc<Mutex<dyn Function>>,
    trace: Arc<Trace>,
}

impl TracedFunction {
    /// This function.
    pub fn new(function: Arc<Mutex<dyn Function>>, trace: Arc<Trace>) -> Self {
        Self { function, trace }
    }

    fn lock(&self) -> MutexGuard<'_, dyn Function + 'static> {
        lock(&*self.function)
    }

    fn note(&self, write: bool, region: u32, offset: u64, data: &[u8]) {
        self.trace.note_access(Access::new(write, region, offset, data));
    }
}

impl Function for TracedFunction {
    fn name(&self) -> &str {
        &self.trace.name
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.lock().read_config(offset, data);
        self.note(false, CONFIG_REGION, offset.into(), data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.note(true, CONFIG_REGION, offset.into(), data);
        self.lock().write_config(offset, data);
    }

    fn decoded(&self) -> Vec<BarRange> {
        self.lock().decoded()
    }

    fn decodes(&self, range: &BarRange) -> bool {
        self.lock().decodes(range)
    }

    fn forward(&mut self, ranges: &[BarRange]) {
        self.lock().forward(ranges);
    }

    fn trap(&mut self) -> bool {
        self.lock().trap()
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        self.lock().read_bar(bar, offset, data);
        self.note(false, bar.into(), offset, data);
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.note(true, bar.into(), offset, data);
        self.lock().write_bar(bar, offset, data);
    }
}
