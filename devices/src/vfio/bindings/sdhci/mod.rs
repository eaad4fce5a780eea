//! Arasan's SD host controller, which is one of the SD Association's specification ("SD Host Controller
//! Simplified Specification"), of AMD's, Rockchip's, Intel's and others' SoCs.

mod card;
mod quiesce;
mod registers;
mod selftest;

use std::time::Duration;

use boot::fdt::Value;

use super::Binding;
use crate::vfio::node::NodeBuilder;
use crate::vfio::quiesce::QuiesceError;

/// The binding of the controller.
pub(super) const BINDING: Binding = Binding {
    name: NAME,
    // Documentation/devicetree/bindings/mmc/arasan,sdhci.yaml.
    compatible: &[
        "arasan,sdhci-4.9a",
        "arasan,sdhci-5.1",
        "arasan,sdhci-8.9a",
        "rockchip,rk3399-sdhci-5.1",
        "xlnx,versal-8.9a",
        "xlnx,zynqmp-8.9a",
    ],
    kernel_option: Some("CONFIG_MMC_SDHCI_OF_ARASAN"),
    registers: registers::TABLE,
    quiesce: |regions| {
        let registers = regions.first().ok_or(QuiesceError::NoRegion(0))?;
        quiesce::stop(*registers, STOP_TIMEOUT)
    },
    refine,
    self_test: Some(selftest::run),
};

/// The controller's usual name.
const NAME: &str = "Arasan SDHCI";

/// How long a transfer that is under way may take to end: as long as a card may be busy with a block
/// (SD Physical Layer Simplified Specification, "Write": 250 ms).
const STOP_TIMEOUT: Duration = Duration::from_millis(250);

/// Where pins of the host's tell of a card and of its lock, which a guest doesn't have: Linux looks for a
/// card again and again, and takes it to be unlocked
/// (Documentation/devicetree/bindings/mmc/mmc-controller.yaml).
fn refine(node: &mut NodeBuilder) {
    for (pin, instead) in [("cd-gpios", "broken-cd"), ("wp-gpios", "disable-wp")] {
        if node.is_without(pin) {
            node.set(instead, Value::Empty);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::testing::node_builder_with;

    #[test]
    fn a_guest_does_without_the_hosts_pins() {
        let pin: &[u8] = &[0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0];
        for (host, guest) in [
            (&[] as &[(&str, &[u8])], &[] as &[&str]),
            (&[("cd-gpios", pin)], &["broken-cd"]),
            (&[("cd-gpios", pin), ("wp-gpios", pin)], &["broken-cd", "disable-wp"]),
            (&[("non-removable", &[])], &["non-removable"]),
        ] {
            let mut node = node_builder_with(&["arasan,sdhci-8.9a"], host);
            refine(&mut node);
            let names: Vec<&str> = node.properties.iter().map(|p| p.name.as_str()).collect();
            assert_eq!(names, guest);
        }
    }
}
