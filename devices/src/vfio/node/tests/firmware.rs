//! What a guest has by SCMI.

use super::*;

/// A device with two clocks, two resets and a power domain of the host's, which a node below has, too.
fn device() -> FakeHost {
    let (clocks, resets, domains) = (cells(&[2, 5, 1, 0]), cells(&[3, 7, 3, 8]), cells(&[3, 9]));
    let fake = host(
        "x@0",
        &[
            ("#address-cells", &cells(&[1])),
            ("#size-cells", &cells(&[0])),
            ("clocks", &clocks),
            ("clock-names", b"core\0bus\0none\0"),
            ("resets", &resets),
            ("reset-names", b"a\0b\0"),
            ("power-domains", &domains),
        ],
    );
    for (property, bytes) in [
        ("phandle", cells(&[3])),
        ("#reset-cells", cells(&[1])),
        ("#power-domain-cells", cells(&[1])),
    ] {
        fake.write(Path::new(BASE).join("pmu@9").join(property), bytes);
    }
    for (property, bytes) in [
        ("reg", cells(&[1])),
        ("clocks", cells(&[2, 6])),
        ("resets", resets),
        ("power-domains", domains),
        ("power-domain-names", b"phy\0".to_vec()),
    ] {
        fake.write(Path::new(BASE).join("x@0/phy@1").join(property), bytes);
    }
    fake
}

fn options() -> NodeOptions {
    let clock_rates = vec![("core".to_owned(), 7), ("phy@1/0".to_owned(), 9)];
    NodeOptions { clock_rates, ..NodeOptions::default() }
}

const ALL: ScmiIds = ScmiIds { clocks: Some(4), resets: Some(0), power_domains: Some(2) };

fn numbered(references: &[(&str, u32)]) -> Option<Value> {
    let cells = references.iter().flat_map(|(to, id)| [Cell::Ref((*to).into()), Cell::U32(*id)]);
    Some(Value::Cells(cells.collect()))
}

#[test]
fn what_the_nodes_name_has_numbers_and_nothing_else() {
    let fake = device();
    let builder = builder_with(&fake, "x@0", &options());
    assert!(builder.names_firmware());
    builder.check().unwrap();
    let nodes = builder.build_with(ONE, &[], ALL);
    let node = &nodes.device;
    let clocks = Value::Cells(
        [("scmi_clocks", 4), ("scmi_clocks", 5)]
            .into_iter()
            .flat_map(|(to, id)| [Cell::Ref(to.into()), Cell::U32(id)])
            .chain([Cell::U32(0)])
            .collect(),
    );
    assert_eq!(node.get("clocks"), Some(&clocks));
    assert_eq!(node.get("resets").cloned(), numbered(&[("scmi_resets", 0), ("scmi_resets", 1)]));
    assert_eq!(node.get("reset-names").cloned(), strings(&["a", "b"]));
    assert_eq!(node.get("power-domains").cloned(), numbered(&[("scmi_power_domains", 3)]));
    let phy = &node.children()[0];
    assert_eq!(phy.get("clocks").cloned(), numbered(&[("scmi_clocks", 6)]));
    assert_eq!(phy.get("power-domains").cloned(), numbered(&[("scmi_power_domains", 2)]));
    assert_eq!(phy.get("resets"), None, "it can't be reset alone");
    assert!(nodes.clocks.is_empty());

    let of = |clock: &ScmiClock| (clock.name.clone(), clock.rate, clock.host.provider.clone());
    let expected = [("core.4", 7, "/cru"), ("bus.5", 24_000_000, "/clk24"), ("clock.6", 9, "/cru")];
    let found: Vec<_> = nodes.scmi.clocks.iter().map(of).collect();
    assert_eq!(found, expected.map(|(name, rate, of)| (name.to_owned(), rate, of.to_owned())));
    assert_eq!(nodes.scmi.resets, ["pmu.0", "pmu.1"]);
    assert_eq!(nodes.scmi.power_domains, ["pmu.2", "pmu.3"]);
    let after = ScmiIds { clocks: Some(7), resets: Some(2), power_domains: Some(4) };
    assert_eq!(ALL.after(&nodes.scmi), after);
}

#[test]
fn what_a_guest_lacks_is_left_out_with_the_reason() {
    let fake = device();
    let mut builder = builder_with(&fake, "x@0", &options());
    let without = builder.build(ONE, &[]);
    assert_eq!(without.scmi, ScmiNames::default());
    assert_eq!(without.clocks.len(), 3, "fixed ones");
    let expected = [
        "phy@1/power-domain-names",
        "phy@1/power-domains",
        "phy@1/resets",
        "power-domains",
        "reset-names",
        "resets",
    ];
    let mut left_out = dropped(&without);
    left_out.sort_unstable();
    assert_eq!(left_out, expected);
    let reason = |nodes: &GuestNodes, path| match disposition(nodes, path) {
        Disposition::Dropped(reason) => reason.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(reason(&without, "resets").contains("/pmu@9"));

    // Only what its kernel has a driver for, and what can be reset.
    let clocks = builder.build_with(ONE, &[], ScmiIds { clocks: Some(0), ..ScmiIds::default() });
    assert_eq!((clocks.scmi.clocks.len(), dropped(&clocks).len()), (3, expected.len()));
    builder.without_resets();
    let rest = builder.build_with(ONE, &[], ALL);
    assert!(rest.scmi.resets.is_empty());
    assert!(reason(&rest, "resets").starts_with("neither VFIO nor a binding"));
}

#[test]
fn what_an_option_drops_has_no_number() {
    let fake = device();
    let drop = ["clocks", "clock-names", "resets", "phy@1"].map(str::to_owned).to_vec();
    let builder = builder_with(&fake, "x@0", &NodeOptions { drop, ..NodeOptions::default() });
    builder.check().unwrap();
    let nodes = builder.build_with(ONE, &[], ALL);
    assert!(nodes.scmi.clocks.is_empty() && nodes.scmi.resets.is_empty());
    assert_eq!(nodes.scmi.power_domains, ["pmu.2"]);
}

#[test]
fn what_a_device_makes_itself_is_no_firmware_s() {
    let fake = host("x@0", &[("clocks", &cells(&[9])), ("#clock-cells", &cells(&[0]))]);
    fake.write(Path::new(BASE).join("x@0/phandle"), cells(&[9]));
    let builder = builder(&fake, "x@0");
    assert!(!builder.names_firmware());
    let nodes = builder.build_with(ONE, &[], ALL);
    assert_eq!(nodes.scmi, ScmiNames::default());
    assert_eq!(nodes.device.get("clocks"), Some(&Value::Cells(vec![Cell::Ref("_1_dev".into())])));
}
