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

    fn set_bus(&mut self, bus: u8) {
        self.lock().set_bus(bus);
    }

    fn reset(&mut self) {
        self.lock().reset();
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

#[cfg(test)]
mod tests {
    use devices::pci::AddressSpace;

    use super::super::record::{Event, Line};
    use super::super::testing;
    use super::*;

    /// Its message is seen before a write to it is done; notes what else it is told to do.
    struct Prompt(Arc<Trace>, Arc<Mutex<Vec<&'static str>>>);

    impl Prompt {
        fn told(&self, what: &'static str) {
            self.1.lock().unwrap().push(what);
        }
    }

    impl Function for Prompt {
        fn name(&self) -> &str {
            "prompt"
        }

        fn read_config(&mut self, _: u16, data: &mut [u8]) {
            self.0.note(Event::Interrupt(0, 1));
            data.fill(7);
        }

        fn write_config(&mut self, offset: u16, data: &[u8]) {
            assert_eq!((offset, data), (4, [6, 0].as_slice()));
            self.0.note(Event::Interrupt(0, 2));
        }

        fn decoded(&self) -> Vec<BarRange> {
            self.told("decoded");
            Vec::new()
        }

        fn decodes(&self, _: &BarRange) -> bool {
            self.told("decodes");
            true
        }

        fn forward(&mut self, _: &[BarRange]) {
            self.told("forward");
        }

        fn trap(&mut self) -> bool {
            self.told("trap");
            true
        }

        fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
            assert_eq!((bar, offset), (2, 0x10));
            self.0.note(Event::Interrupt(0, 3));
            data.fill(8);
        }

        fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
            assert_eq!((bar, offset, data), (2, 0x14, [1; 8].as_slice()));
            self.0.note(Event::Interrupt(0, 4));
        }
    }

    #[test]
    fn what_a_write_causes_comes_behind_it_and_a_read_behind_what_it_depends_on() {
        let (trace, told) = (testing::trace(None, None, None), Arc::default());
        let function = Arc::new(Mutex::new(Prompt(trace.clone(), Arc::clone(&told))));
        let mut traced = TracedFunction::new(function, trace.clone());
        let mut word = [0; 4];
        traced.read_config(0, &mut word);
        assert_eq!(word, [7; 4]);
        traced.write_config(4, &[6, 0]);
        traced.read_bar(2, 0x10, &mut word[..1]);
        assert_eq!(word, [8, 7, 7, 7]);
        traced.write_bar(2, 0x14, &[1; 8]);
        let interrupts = vec![Line { kind: "msi", number: 5, ends: false }];
        assert_eq!(
            testing::written(&trace, interrupts, true),
            [
                "interrupt msi 5",
                "read  config:0x000 0x07070707",
                "write config:0x004 0x0006",
                "interrupt msi 5, 2 times",
                "interrupt msi 5, 3 times",
                "read  2:0x010 0x08",
                "write 2:0x014 0x0101010101010101",
                "interrupt msi 5, 4 times",
            ]
        );
        // And what isn't the guest's access goes through.
        let range = BarRange { bar: 2, space: AddressSpace::Memory, range: 0..0x1000 };
        assert!(traced.decoded().is_empty() && traced.decodes(&range) && traced.trap());
        traced.forward(&[]);
        assert_eq!(*told.lock().unwrap(), ["decoded", "decodes", "trap", "forward"]);
    }
}
