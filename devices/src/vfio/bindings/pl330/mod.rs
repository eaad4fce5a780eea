//! The Arm PL330 ("CoreLink DMA-330") DMA controller: a manager thread and up to eight channel
//! threads that run programs from memory. Its reference manual (TRM) is ARM DDI 0424.

mod program;
mod quiesce;
mod registers;
mod selftest;

use std::time::Duration;

use boot::fdt::{Cell, Value};

use super::Binding;
use super::primecell::{APB_PCLK, DEFAULT_RATE, add_primecell, has_apb_clock};
use crate::vfio::node::{Clock, NodeBuilder};
use crate::vfio::quiesce::QuiesceError;

/// The binding of the PL330.
pub(super) const BINDING: Binding = Binding {
    name: "PL330",
    compatible: &["arm,pl330"],
    kernel_option: Some("CONFIG_PL330_DMA"),
    registers: registers::TABLE,
    quiesce: |regions| {
        let registers = regions.first().ok_or(QuiesceError::NoRegion(0))?;
        quiesce::stop(*registers, STOP_TIMEOUT)
    },
    refine,
    self_test: Some(selftest::run),
};

/// How long each thread may take to stop: it has to complete its outstanding transfers, at most a few
/// hundred beats on the bus.
const STOP_TIMEOUT: Duration = Duration::from_millis(20);

/// Makes of a host's node one that Linux' AMBA bus and its pl330 driver take
/// (Documentation/devicetree/bindings/dma/arm,pl330.yaml and bindings/arm/primecell.yaml).
fn refine(node: &mut NodeBuilder) {
    // Bindings/dma/dma-controller.yaml names the node.
    "dma-controller".clone_into(&mut node.name);
    add_primecell(node);
    // As the host has it: other devices of the guest may refer to this one.
    let cells = "#dma-cells";
    if node.properties.iter().all(|property| property.name != cells) {
        node.set(cells, Value::Cells(vec![Cell::U32(1)]));
    }
    if !has_apb_clock(&node.clocks) {
        match node.clocks.as_mut_slice() {
            // The only one can be no other.
            [only] => only.name = Some(APB_PCLK.to_owned()),
            // First, so that clocks without names stay behind those with.
            _ => node.clocks.insert(0, Clock::new(Some(APB_PCLK), None)),
        }
    }
    // Nor does the driver ask for a rate.
    for clock in node.clocks.iter_mut().filter(|clock| clock.reference.is_none()) {
        clock.rate.get_or_insert(DEFAULT_RATE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::testing::node_builder;

    fn node(compatible: &[&str], clocks: &[(Option<&str>, Option<u32>)]) -> NodeBuilder {
        let mut node = node_builder(compatible);
        node.clocks = clocks.iter().map(|(name, rate)| Clock::new(*name, *rate)).collect();
        node
    }

    #[test]
    fn arm_primecell_is_there_once() {
        for compatible in [&["arm,pl330"] as &[&str], &["arm,pl330", "arm,primecell"]] {
            let mut node = node(compatible, &[]);
            refine(&mut node);
            assert_eq!(node.compatible, ["arm,pl330", "arm,primecell"]);
            assert_eq!(node.name, "dma-controller");
        }
    }

    #[test]
    fn one_clock_is_apb_pclk_and_all_have_a_rate() {
        type Clocks<'a> = &'a [(Option<&'a str>, Option<u32>)];
        let cases: [(Clocks<'_>, Clocks<'_>); 5] = [
            (&[], &[(Some(APB_PCLK), Some(DEFAULT_RATE))]),
            (&[(Some(APB_PCLK), Some(7))], &[(Some(APB_PCLK), Some(7))]),
            (&[(None, Some(7))], &[(Some(APB_PCLK), Some(7))]),
            (&[(Some("dma"), None)], &[(Some(APB_PCLK), Some(DEFAULT_RATE))]),
            (
                &[(Some("a"), Some(7)), (Some("b"), None)],
                &[
                    (Some(APB_PCLK), Some(DEFAULT_RATE)),
                    (Some("a"), Some(7)),
                    (Some("b"), Some(DEFAULT_RATE)),
                ],
            ),
        ];
        for (host, guest) in cases {
            let (mut found, expected) = (node(&["x"], host), node(&["x"], guest));
            refine(&mut found);
            assert_eq!(found.clocks, expected.clocks, "{host:?}");
        }
    }
}
