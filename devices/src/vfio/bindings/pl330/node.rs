//! The node that a guest's driver needs: Documentation/devicetree/bindings/dma/arm,pl330.yaml and
//! bindings/arm/primecell.yaml.

use boot::fdt::{Cell, Value};

use crate::vfio::node::{Clock, Draft};

/// What AMBA drivers call the clock of the register interface.
const APB_PCLK: &str = "apb_pclk";

/// The rate in Hz of a clock whose rate isn't known. Neither the AMBA bus nor the driver asks: they
/// switch the clock on and off, which in a guest does nothing.
const NOMINAL_RATE: u32 = 24_000_000;

/// Makes of a host's node one that Linux' AMBA bus and its pl330 driver take.
pub(super) fn refine(draft: &mut Draft) {
    // Bindings/dma/dma-controller.yaml names the node.
    "dma-controller".clone_into(&mut draft.name);
    // A host that has it on its platform bus, for vfio-platform, leaves this out; the guest's bus
    // is the AMBA one.
    let primecell = "arm,primecell";
    if !draft.compatible.iter().any(|string| string == primecell) {
        draft.compatible.push(primecell.to_owned());
    }
    draft.set("#dma-cells", Value::Cells(vec![Cell::U32(1)]));
    name_clock(&mut draft.clocks);
    for clock in draft.clocks.iter_mut().filter(|clock| clock.own.is_none()) {
        clock.rate.get_or_insert(NOMINAL_RATE);
    }
}

/// Sees that one of the clocks is the register interface's.
fn name_clock(clocks: &mut Vec<Clock>) {
    if clocks.iter().any(|clock| clock.name.as_deref() == Some(APB_PCLK)) {
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

    fn draft(compatible: &[&str], clocks: &[(Option<&str>, Option<u32>)]) -> Draft {
        let mut draft = Draft::new("dma", compatible);
        draft.clocks = clocks.iter().map(|(name, rate)| Clock::new(*name, *rate)).collect();
        draft
    }

    #[test]
    fn arm_primecell_is_there_once() {
        for compatible in [&["arm,pl330"] as &[&str], &["arm,pl330", "arm,primecell"]] {
            let mut draft = draft(compatible, &[]);
            refine(&mut draft);
            assert_eq!(draft.compatible, ["arm,pl330", "arm,primecell"]);
            assert_eq!(draft.name, "dma-controller");
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
            let (mut found, expected) = (draft(&[], host), draft(&[], guest));
            refine(&mut found);
            assert_eq!(found.clocks, expected.clocks, "{host:?}");
        }
    }
}
