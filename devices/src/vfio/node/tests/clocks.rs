//! A device's clocks.

use super::*;

#[test]
fn a_clock_without_a_known_rate_is_an_error_that_names_the_option() {
    // Clock 2 takes an argument.
    let clocks = cells(&[2, 5, 1, 0]);
    let fake = host("x@0", &[("clocks", &clocks), ("clock-names", b"core\0bus\0none\0")]);
    let error = builder(&fake, "x@0").check().unwrap_err();
    assert_eq!(error, NodeError::UnknownRates(vec!["core".to_owned()]));
    let help = error.help("1.dev");
    assert!(help.starts_with("--vfio-platform 1.dev,clock-rate=core:HZ "), "{help}");

    let clock_rates = vec![("core".to_owned(), 7)];
    let given = builder_with(&fake, "x@0", &NodeOptions { clock_rates, ..NodeOptions::default() });
    given.check().unwrap();
    let nodes = given.build(ONE, &[]);
    assert_eq!(nodes.device.get("clock-names").cloned(), strings(&["core", "bus", "none"]));
    let label = |label: &str| Cell::Ref(label.into());
    let clocks = vec![label("_1_dev_clock0"), label("_1_dev_clock1"), Cell::U32(0)];
    assert_eq!(nodes.device.get("clocks"), Some(&Value::Cells(clocks)));
    let rates: Vec<_> =
        nodes.clocks.iter().map(|node| node.get("clock-frequency").cloned().unwrap()).collect();
    assert_eq!(rates, [numbers(&[7]).unwrap(), numbers(&[24_000_000]).unwrap()]);

    // Nobody asks for the rate of a clock that the guest doesn't have.
    let drop = vec!["clocks".to_owned(), "clock-names".to_owned()];
    let without = builder_with(&fake, "x@0", &NodeOptions { drop, ..NodeOptions::default() });
    without.check().unwrap();
    let nodes = without.build(ONE, &[]);
    assert!(nodes.clocks.is_empty());
    assert_eq!(disposition(&nodes, "clocks"), &Disposition::Dropped("drop=clocks".into()));
}

#[test]
fn clocks_that_refer_to_nothing_are_dropped_with_the_reason() {
    let fake = host("x@0", &[("clocks", &cells(&[77]))]);
    let builder = builder(&fake, "x@0");
    builder.check().unwrap();
    let nodes = builder.build(ONE, &[]);
    let Disposition::Dropped(reason) = disposition(&nodes, "clocks") else { panic!() };
    assert!(reason.contains("phandle 0x4d"), "{reason}");
}
