//! The node that a guest's driver needs: Documentation/devicetree/bindings/dma/arm,pl330.yaml and
//! bindings/arm/primecell.yaml.

use boot::fdt::{Cell, Value};

use super::super::primecell::{APB_PCLK, NOMINAL_RATE, has_apb_clock, put_on_amba};
use crate::vfio::node::{Clock, NodeBuilder};

/// Makes of a host's node one that Linux' AMBA bus and its pl330 driver take.
pub(super) fn refine(builder: &mut NodeBuilder) {
    // Bindings/dma/dma-controller.yaml names the node.
    "dma-controller".clone_into(&mut builder.name);
    put_on_amba(builder);
    // As the host has it: other devices of the guest may refer to this one.
    let cells = "#dma-cells";
    if builder.properties.iter().all(|property| property.name != cells) {
        builder.set(cells, Value::Cells(vec![Cell::U32(1)]));
    }
    name_clock(&mut builder.clocks);
    // Nor does the driver ask for a rate.
    for clock in builder.clocks.iter_mut().filter(|clock| clock.own.is_none()) {
        clock.rate.get_or_insert(NOMINAL_RATE);
    }
}

/// Sees that one of the clocks is the register interface's.
fn name_clock(clocks: &mut Vec<Clock>) {
    if has_apb_clock(clocks) {
        return;
    }
    match clocks.as_mut_slice() {
        // The only one can be no other.
        [only] => only.name = Some(APB_PCLK.to_owned()),
        // First, so that clocks without names stay behind those with.
        _ => clocks.insert(0, Clock::new(Some(APB_PCLK), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(compatible: &[&str], clocks: &[(Option<&str>, Option<u32>)]) -> NodeBuilder {
        let mut builder = NodeBuilder::new("dma", compatible);
        builder.clocks = clocks.iter().map(|(name, rate)| Clock::new(*name, *rate)).collect();
        builder
    }

    #[test]
    fn arm_primecell_is_there_once() {
        for compatible in [&["arm,pl330"] as &[&str], &["arm,pl330", "arm,primecell"]] {
            let mut builder = builder(compatible, &[]);
            refine(&mut builder);
            assert_eq!(builder.compatible, ["arm,pl330", "arm,primecell"]);
            assert_eq!(builder.name, "dma-controller");
        }
    }

    #[test]
    fn one_clock_is_apb_pclk_and_all_have_a_rate() {
        type Clocks<'a> = &'a [(Option<&'a str>, Option<u32>)];
        let cases: [(Clocks<'_>, Clocks<'_>); 5] = [
            (&[], &[(Some(APB_PCLK), Some(NOMINAL_RATE))]),
            (&[(Some(APB_PCLK), Some(7))], &[(Some(APB_PCLK), Some(7))]),
            (&[(None, Some(7))], &[(Some(APB_PCLK), Some(7))]),
            (&[(Some("dma"), None)], &[(Some(APB_PCLK), Some(NOMINAL_RATE))]),
            (
                &[(Some("a"), Some(7)), (Some("b"), None)],
                &[
                    (Some(APB_PCLK), Some(NOMINAL_RATE)),
                    (Some("a"), Some(7)),
                    (Some("b"), Some(NOMINAL_RATE)),
                ],
            ),
        ];
        for (host, guest) in cases {
            let (mut found, expected) = (builder(&[], host), builder(&[], guest));
            refine(&mut found);
            assert_eq!(found.clocks, expected.clocks, "{host:?}");
        }
    }
}
