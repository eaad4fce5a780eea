//! The nodes below a device's.

use super::*;

/// A network card of the kind of stmmac: its bus for PHYs, and what it names its settings by.
fn stmmac() -> FakeHost {
    let one = cells(&[1]);
    host(
        "eth@0",
        &[
            ("compatible", b"snps,dwmac\0"),
            ("phandle", &cells(&[0x30])),
            ("snps,axi-config", &cells(&[0x31])),
            ("phy-handle", &cells(&[0x32])),
            ("vendor,unheard-of", &cells(&[0x31])),
            ("vendor,grf", &cells(&[1])),
            ("tx-fifo-depth", &cells(&[2])),
            ("thermal-sensors", &cells(&[0x33, 4])),
            ("#address-cells", &one),
            ("#size-cells", &cells(&[0])),
            ("stmmac-axi-config/phandle", &cells(&[0x31])),
            ("stmmac-axi-config/snps,wr_osr_lmt", &cells(&[4])),
            ("mdio/phy@1/phandle", &cells(&[0x32])),
            ("mdio/phy@1/reg", &one),
            ("mdio/phy@1/interrupts", &one),
            ("mdio/phy@1/clocks", &one),
            ("mdio/phy@1/vdd-supply", &cells(&[2])),
            ("gpio-ranges", &cells(&[0x30, 0, 0, 8, 0x33, 0, 8, 8])),
            ("hog/gpio-hog", b""),
            ("hog/gpios", &cells(&[4, 0])),
            ("sensor/phandle", &cells(&[0x33])),
            ("sensor/#thermal-sensor-cells", &one),
        ],
    )
}

#[test]
fn references_to_nodes_below_are_kept() {
    let nodes = builder(&stmmac(), "eth@0").build(ONE, &[]);
    let device = &nodes.device;
    assert_eq!(device.get_phandle(), Some(0x30));
    let axi = device.children().iter().find(|c| c.name() == "stmmac-axi-config").unwrap();
    assert_eq!(
        (axi.get_phandle(), axi.get_label().unwrap().as_str()),
        (Some(0x31), "_1_dev_stmmac_axi_config")
    );
    let label = |label: &str| Some(Value::Cells(vec![Cell::Ref(label.into())]));
    assert_eq!(device.get("snps,axi-config").cloned(), label("_1_dev_stmmac_axi_config"));
    assert_eq!(device.get("phy-handle").cloned(), label("_1_dev_mdio_phy_1"));
    // Nobody knows that this is a phandle, and it leads to the same node all the same.
    assert_eq!(device.get("vendor,unheard-of").cloned(), numbers(&[0x31]));
    for kept in
        ["snps,axi-config", "phy-handle", "vendor,unheard-of", "tx-fifo-depth", "thermal-sensors"]
    {
        assert_eq!(disposition(&nodes, kept), &Disposition::Kept, "{kept}");
    }
    let Disposition::Dropped(reason) = disposition(&nodes, "vendor,grf") else { panic!() };
    assert_eq!(reason, "it refers to a node that stays the host's (/clk24)");
    // The PHY's clock is the host's, its interrupt is no interrupt of the device's.
    assert_eq!(disposition(&nodes, "mdio/phy@1/clocks"), &Disposition::Rewritten);
    assert_eq!(nodes.clocks[0].get_label().unwrap().as_str(), "_1_dev_child_clock0");
    assert_eq!(dropped(&nodes), ["vendor,grf", "mdio/phy@1/interrupts", "mdio/phy@1/vdd-supply"]);
    // It can be written, and the phandles are the host's.
    let root = Node::new("").child(nodes.device).with_children(nodes.clocks);
    boot::fdt::to_blob(&root).unwrap();
}

#[test]
fn clocks_of_nodes_below_are_named_by_their_paths() {
    let fake = stmmac();
    fake.write(Path::new(BASE).join("eth@0/mdio/phy@1/clocks"), cells(&[2, 9]));
    let error = builder(&fake, "eth@0").check().unwrap_err();
    assert_eq!(error, NodeError::UnknownRates(vec!["mdio/phy@1/0".to_owned()]));
    let clock_rates = vec![("mdio/phy@1/0".to_owned(), 25_000_000)];
    let options = NodeOptions { clock_rates, ..NodeOptions::default() };
    builder_with(&fake, "eth@0", &options).check().unwrap();
    let drop = vec!["mdio".to_owned()];
    let options = NodeOptions { drop, ..NodeOptions::default() };
    let without = builder_with(&fake, "eth@0", &options);
    without.check().unwrap();
    let nodes = without.build(ONE, &[]);
    assert_eq!(disposition(&nodes, "mdio/"), &Disposition::Dropped("drop=mdio".into()));
    assert!(nodes.clocks.is_empty());
}

#[test]
fn nodes_below_are_copied_where_their_addresses_are_the_devices_own() {
    let one = cells(&[1]);
    let (reg, ranges) = (
        cells(&[0, 0x1000, 0x100, 0, 0x5000, 0x1000]),
        cells(&[0, 0, 0x1000, 0x100, 0x4000, 0, 0x9000, 0x10, 0x8000, 0, 0x5800, 0x100]),
    );
    let children: &[(&str, &[u8])] = &[
        ("compatible", b"vendor,bus\0"),
        ("reg", &reg),
        ("ranges", &ranges),
        ("#address-cells", &one),
        ("#size-cells", &one),
        ("in@80/reg", &cells(&[0x80, 0x80])),
        ("beyond@80/reg", &cells(&[0x80, 0x81])),
        ("elsewhere@4000/reg", &cells(&[0x4000, 8])),
        ("second@8010/reg", &cells(&[0x8010, 8])),
        ("second@8010/#address-cells", &one),
        ("second@8010/#size-cells", &one),
        ("second@8010/ranges", &cells(&[0, 0x8010, 0x20])),
        ("second@8010/deep@1f/reg", &cells(&[0x1f, 1])),
        ("second@8010/deeper@20/reg", &cells(&[0x20, 1])),
        ("none/label", b"x\0"),
    ];
    let fake = host("x@0", children);
    let nodes = builder(&fake, "x@0").build(&[(0xc00_0000, 0x100), (0xc01_0000, 0x1000)], &[]);
    let names: Vec<&str> = nodes.device.children().iter().map(Node::name).collect();
    assert_eq!(names, ["in@80", "none", "second@8010"]);
    let ranges = numbers(&[0, 0, 0xc00_0000, 0x100, 0x8000, 0, 0xc01_0800, 0x100]);
    assert_eq!(nodes.device.get("ranges").cloned(), ranges);
    assert_eq!(dropped(&nodes), ["beyond@80/", "elsewhere@4000/", "second@8010/deeper@20/"]);
    assert_eq!(disposition(&nodes, "in@80/reg"), &Disposition::Kept);

    // With an empty `ranges` they are at the host's own addresses.
    let (reg, child) = (cells(&[0, 0x1000, 0x100]), cells(&[0x1040, 8]));
    let same: &[(&str, &[u8])] = &[
        ("reg", &reg),
        ("ranges", b""),
        ("#address-cells", &one),
        ("#size-cells", &one),
        ("in@1040/reg", &child),
    ];
    let nodes = builder(&host("x@0", same), "x@0").build(ONE, &[]);
    let ranges = numbers(&[0x1000, 0, 0xc00_0000, 0x100]);
    assert_eq!(nodes.device.get("ranges").cloned(), ranges);
}

#[test]
fn addresses_that_cannot_be_translated_leave_the_nodes_below_out() {
    let pci: &[(&str, &[u8])] = &[
        ("reg", &cells(&[0, 0x1000, 0x100])),
        ("ranges", &cells(&[0x0200_0000, 0, 0x1000, 0, 0x1000, 0, 0x100])),
        ("#address-cells", &cells(&[3])),
        ("#size-cells", &cells(&[2])),
        ("pci@0/reg", &cells(&[0, 0, 0, 0, 0])),
    ];
    let nodes = builder(&host("x@0", pci), "x@0").build(ONE, &[]);
    assert!(nodes.device.children().is_empty());
    assert_eq!(dropped(&nodes), ["#address-cells", "#size-cells", "ranges", "pci@0/"]);
}

#[test]
fn interrupts_among_the_devices_own_nodes_are_kept() {
    let own: &[(&str, &[u8])] = &[
        ("phandle", &cells(&[0x30])),
        ("interrupt-controller", b""),
        ("#interrupt-cells", &cells(&[1])),
        ("a/interrupts", &cells(&[1])),
        ("b/interrupt-parent", &cells(&[0x30])),
        ("b/interrupts", &cells(&[2])),
        ("c/interrupts-extended", &cells(&[0x30, 3])),
        ("d/interrupt-parent", &cells(&[1])),
        ("d/interrupts", &cells(&[4])),
        ("e/interrupts-extended", &cells(&[1])),
    ];
    let nodes = builder(&host("x@0", own), "x@0").build(ONE, &[]);
    let expected = ["d/interrupt-parent", "d/interrupts", "e/interrupts-extended"];
    assert_eq!(dropped(&nodes), expected);
    for kept in ["a/interrupts", "b/interrupt-parent", "b/interrupts", "c/interrupts-extended"] {
        assert_eq!(disposition(&nodes, kept), &Disposition::Kept, "{kept}");
    }
}
