//! What is known of particular devices: how to stop one, and what its node needs.
//!
//! A device with no binding works too: its node is the host's, and it is stopped only if VFIO has a
//! reset for it. All that is known of a device is in its own module.

pub mod pl011;
pub mod pl330;
mod primecell;

use std::fmt;

use super::node::NodeBuilder;
use super::quiesce::QuiesceError;
use super::region::RegisterAccess;
use super::selftest::{SelfTest, SelfTestError, TestReport};

/// What is known of a kind of device.
pub trait Binding: fmt::Debug + Sync {
    /// What people call it.
    fn name(&self) -> &'static str;

    /// The strings in `compatible` that it goes by.
    fn compatible(&self) -> &'static [&'static str];

    /// The option of Linux' configuration that builds a driver for it, where one is known.
    fn kernel_option(&self) -> Option<&'static str> {
        None
    }

    /// Stops whatever the device is doing, so that it does no DMA and holds no interrupt line, and
    /// sees that it did. Takes a bounded time. `regions` are the device's, by VFIO's index.
    ///
    /// # Errors
    ///
    /// If the device isn't what it should be, or didn't stop.
    fn quiesce(&self, regions: &[&dyn RegisterAccess]) -> Result<(), QuiesceError>;

    /// Makes of the generic node what a guest's driver needs.
    fn refine(&self, builder: &mut NodeBuilder);

    /// Drives the device without a guest and sees that it works; `None` where that isn't known for
    /// this kind of device.
    fn self_test(&self, test: &mut SelfTest) -> Option<Result<TestReport, SelfTestError>> {
        let _ = test;
        None
    }
}

/// All there are.
static BINDINGS: &[&dyn Binding] = &[&pl330::Pl330, &pl011::Pl011];

/// The binding of a device with these `compatible` strings, the most specific first.
pub fn find<S: AsRef<str>>(compatible: &[S]) -> Option<&'static dyn Binding> {
    compatible.iter().find_map(|string| {
        BINDINGS.iter().copied().find(|binding| binding.compatible().contains(&string.as_ref()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_any_of_its_compatible_strings() {
        let cases: [(&[&str], Option<&str>); 5] = [
            (&["arm,pl330"], Some("PL330")),
            (&["vendor,dmac", "arm,pl330", "arm,primecell"], Some("PL330")),
            (&["arm,pl011", "arm,primecell"], Some("PL011")),
            (&["arm,primecell"], None),
            (&[], None),
        ];
        for (compatible, expected) in cases {
            assert_eq!(find(compatible).map(Binding::name), expected, "{compatible:?}");
        }
    }

    #[test]
    fn no_two_bindings_claim_the_same_device() {
        let mut all: Vec<_> = BINDINGS.iter().flat_map(|binding| binding.compatible()).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
