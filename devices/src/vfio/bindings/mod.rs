//! What is known of particular devices: how to quiesce one, what its guest node needs, how to test it.
//!
//! A device without a binding can be assigned too: its node is the host's, it is quiesced by VFIO's
//! reset if there is one, and its self-test is the general one. All that is known of one device is in
//! its own module.

mod copier;
mod edu;
mod gem;
mod nvme;
mod pci;
mod pl011;
mod pl330;
mod primecell;
mod sdhci;
mod test_engine;

pub use self::pci::{registers as function_registers, with_header};
use super::node::NodeBuilder;
use super::quiesce::QuiesceError;
use super::region::RegisterAccess;
use super::selftest::{SelfTest, SelfTestError, TestReport};

/// Runs a self-test.
type SelfTestFn = fn(&mut SelfTest) -> Result<TestReport, SelfTestError>;

/// What is known of one kind of device.
#[derive(Debug)]
pub struct Binding {
    /// The device's usual name.
    pub name: &'static str,
    /// The `compatible` strings by which a device is recognised.
    pub compatible: &'static [&'static str],
    /// The option of Linux' configuration that builds a driver for it.
    pub kernel_option: Option<&'static str>,
    /// Its registers, of its first region, as [`RegisterTable`](super::register_table::RegisterTable)
    /// parses them.
    pub registers: &'static str,
    /// Stops all DMA and all interrupts of the device, and verifies that they stopped, in a bounded
    /// time. The argument is its regions, by VFIO's index.
    ///
    /// Fails if it is another device, or doesn't stop.
    pub quiesce: fn(&[&dyn RegisterAccess]) -> Result<(), QuiesceError>,
    /// Adds what a guest's driver needs beyond the host's node.
    pub refine: fn(&mut NodeBuilder),
    /// Drives the device without a guest and verifies that it works; a device that fails is in the
    /// report.
    ///
    /// Fails if the host refuses something without which nothing can be tested.
    pub self_test: Option<SelfTestFn>,
}

/// All bindings.
static BINDINGS: &[Binding] = &[pl330::BINDING, pl011::BINDING, gem::BINDING, sdhci::BINDING];

/// The binding of a device with these `compatible` strings, the most specific first.
pub fn find<S: AsRef<str>>(compatible: &[S]) -> Option<&'static Binding> {
    let binding =
        |string: &S| BINDINGS.iter().find(|binding| binding.compatible.contains(&string.as_ref()));
    compatible.iter().find_map(binding)
}

/// Runs the self-test of the device's binding, or the general one.
///
/// # Errors
///
/// The host refuses something without which nothing can be tested; a device that fails is in the
/// report.
#[cold]
pub fn self_test(test: &mut SelfTest) -> Result<TestReport, SelfTestError> {
    match find(test.compatible()).and_then(|binding| binding.self_test) {
        Some(run) => run(test),
        None => {
            let mut report = test.run_general();
            report.isolation = pci::isolation(test)?;
            Ok(report)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::register_table::RegisterTable;

    #[test]
    fn a_device_is_recognised_by_any_of_its_compatible_strings() {
        let cases: [(&[&str], Option<&str>); 8] = [
            (&["arm,pl330"], Some("PL330")),
            (&["vendor,dmac", "arm,pl330", "arm,primecell"], Some("PL330")),
            (&["arm,pl011", "arm,primecell"], Some("PL011")),
            (&["arm,primecell"], None),
            (&["xlnx,zynqmp-gem", "cdns,gem"], Some("Cadence GEM")),
            (&["cdns,macb"], None),
            (&["xlnx,zynqmp-8.9a", "arasan,sdhci-8.9a"], Some("Arasan SDHCI")),
            (&[], None),
        ];
        for (compatible, expected) in cases {
            assert_eq!(find(compatible).map(|binding| binding.name), expected, "{compatible:?}");
        }
    }

    #[test]
    fn registers_are_in_order_and_each_is_one_that_can_be() {
        let all = BINDINGS.iter().map(|binding| (binding.name, binding.registers));
        for (name, text) in all.chain([("NVMe", nvme::REGISTERS), ("PCI", pci::HEADER)]) {
            let table = RegisterTable::parse(text);
            assert_eq!(table.to_string(), text, "{name}");
            for register in table.registers() {
                assert_eq!(register.check(), Ok(()), "{name}: {register:?}");
                let places = table.find(&register.name).len();
                assert_eq!(places, register.count as usize, "{name}: {register:?}");
            }
        }
    }

    #[test]
    fn no_two_bindings_are_for_the_same_device() {
        let mut all: Vec<_> = BINDINGS.iter().flat_map(|binding| binding.compatible).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
