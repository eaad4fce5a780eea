//! The node that a guest's driver needs:
//! Documentation/devicetree/bindings/serial/pl011.yaml.

use super::super::primecell::{APB_PCLK, NOMINAL_RATE, has_apb_clock, put_on_amba};
use crate::vfio::node::{Clock, NodeBuilder};

/// The clock that baud rates are divided from: the first, by which drivers get it. Its rate
/// matters.
const UARTCLK: &str = "uartclk";

/// Makes of a host's node one that Linux' AMBA bus and its pl011 driver take.
pub(super) fn refine(builder: &mut NodeBuilder) {
    // Bindings/serial/serial.yaml names the node.
    "serial".clone_into(&mut builder.name);
    put_on_amba(builder);
    if builder.clocks.is_empty() {
        builder.clocks.push(Clock::new(Some(UARTCLK), None));
    }
    let names = [UARTCLK, APB_PCLK];
    for (clock, name) in builder.clocks.iter_mut().zip(names) {
        clock.name.get_or_insert_with(|| name.to_owned());
    }
    if !has_apb_clock(&builder.clocks) {
        // Behind those with names, which may be followed by some without.
        let named = builder.clocks.iter().take_while(|clock| clock.name.is_some()).count();
        builder.clocks.insert(named, Clock::new(Some(APB_PCLK), None));
    }
    // The first one counts, whatever it is called.
    for clock in builder.clocks.iter_mut().skip(1) {
        if clock.name.as_deref() == Some(APB_PCLK) && clock.own.is_none() {
            clock.rate.get_or_insert(NOMINAL_RATE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_clock_is_the_baud_rates_and_one_is_the_buss() {
        type Clocks<'a> = &'a [(Option<&'a str>, Option<u32>)];
        let apb = (Some(APB_PCLK), Some(NOMINAL_RATE));
        let cases: [(Clocks<'_>, Clocks<'_>); 7] = [
            (&[], &[(Some(UARTCLK), None), apb]),
            (&[(None, Some(7))], &[(Some(UARTCLK), Some(7)), apb]),
            (&[(None, Some(7)), (None, None)], &[(Some(UARTCLK), Some(7)), apb]),
            (
                &[(Some(UARTCLK), Some(7)), (Some(APB_PCLK), Some(8))],
                &[(Some(UARTCLK), Some(7)), (Some(APB_PCLK), Some(8))],
            ),
            (&[(Some("uart"), None), (Some(APB_PCLK), None)], &[(Some("uart"), None), apb]),
            // Only one, which is both: nobody knows how fast it is.
            (&[(Some(APB_PCLK), None)], &[(Some(APB_PCLK), None)]),
            (
                &[(Some("a"), Some(7)), (Some("b"), None), (None, None)],
                &[(Some("a"), Some(7)), (Some("b"), None), apb, (None, None)],
            ),
        ];
        for (host, guest) in cases {
            let mut builder = NodeBuilder::new("uart", &["arm,pl011"]);
            builder.clocks = host.iter().map(|(name, rate)| Clock::new(*name, *rate)).collect();
            refine(&mut builder);
            let found: Vec<_> =
                builder.clocks.iter().map(|clock| (clock.name.as_deref(), clock.rate)).collect();
            assert_eq!(found, guest, "{host:?}");
            assert_eq!(builder.compatible, ["arm,pl011", "arm,primecell"]);
            assert_eq!(builder.name, "serial");
        }
    }
}
