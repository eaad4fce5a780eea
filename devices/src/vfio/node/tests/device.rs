//! The device's own node.

use super::*;

#[test]
fn a_pl330_gets_the_node_that_its_driver_takes() {
    let nodes = dmac_nodes(&dmac(b"arm,pl330\0", &[("dma-coherent", b"")]));
    let expected = Node::at("dma-controller", 0xc00_0000)
        .label("_1_dev")
        .strings("compatible", ["arm,pl330", "arm,primecell"])
        .reg([(0xc00_0000, 0x1000)])
        .cells("interrupts", [0u32, 40, 4, 0, 41, 4])
        .refs("clocks", ["_1_dev_clock0"])
        .strings("clock-names", ["apb_pclk"])
        .flag("dma-coherent")
        .u32("#dma-cells", 1);
    assert_eq!(nodes.device, expected);
    let clock = Node::new("clock-1_dev_clock0")
        .label("_1_dev_clock0")
        .string("compatible", "fixed-clock")
        .u32("#clock-cells", 0)
        .u32("clock-frequency", 24_000_000);
    assert_eq!(nodes.clocks, [clock]);
    assert_eq!(dropped(&nodes), ["iommus"]);
    let dispositions = [
        ("compatible", Disposition::Rewritten),
        ("reg", Disposition::Rewritten),
        ("clocks", Disposition::Rewritten),
        ("clock-names", Disposition::Kept),
        ("dma-coherent", Disposition::Kept),
        ("#dma-cells", Disposition::Kept),
    ];
    for (property, expected) in dispositions {
        assert_eq!(disposition(&nodes, property), &expected, "{property}");
    }
}

#[test]
fn a_pl330_from_the_amba_bus_gets_the_same_node() {
    let platform = dmac_nodes(&dmac(b"arm,pl330\0", &[]));
    let amba = dmac_nodes(&dmac(b"arm,pl330\0arm,primecell\0", &[]));
    assert_eq!((&platform.device, &platform.clocks), (&amba.device, &amba.clocks));
    assert_eq!(disposition(&amba, "compatible"), &Disposition::Kept);
}

#[test]
fn dma_coherent_is_never_added() {
    let nodes = dmac_nodes(&dmac(b"arm,pl330\0", &[]));
    assert_eq!(nodes.device.get("dma-coherent"), None);
}

#[test]
fn quirks_and_the_identification_are_kept() {
    let id = cells(&[0x0004_1330]);
    let nodes = dmac_nodes(&dmac(
        b"arm,pl330\0",
        &[("arm,pl330-broken-no-flushp", b""), ("arm,primecell-periphid", &id)],
    ));
    assert_eq!(nodes.device.get("arm,pl330-broken-no-flushp"), Some(&Value::Empty));
    assert_eq!(nodes.device.get("arm,primecell-periphid").cloned(), numbers(&[0x0004_1330]));
}

#[test]
fn any_device_keeps_its_node_with_the_guests_addresses_and_interrupts() {
    let fake = host(
        "serial@2c0e0000",
        &[
            ("compatible", b"vendor,uart\0"),
            ("reg-names", b"regs\0fifo\0"),
            ("interrupt-names", b"rx\0tx\0"),
            ("current-speed", &cells(&[115_200])),
            ("vdd-supply", &cells(&[77])),
            ("status", b"okay\0"),
        ],
    );
    let irqs = [(Spi(3), Trigger::Edge), (Spi(4), Trigger::Level)];
    let regions = [(0xc00_0000, 0x1000), (0xc00_1000, 0x2000)];
    let nodes = builder(&fake, "serial@2c0e0000").build(&regions, &irqs);
    let expected = Node::at("serial", 0xc00_0000)
        .label("_1_dev")
        .strings("compatible", ["vendor,uart"])
        .reg(regions)
        .strings("reg-names", ["regs", "fifo"])
        .cells("interrupts", [0u32, 3, 1, 0, 4, 4])
        .strings("interrupt-names", ["rx", "tx"])
        .u32("current-speed", 115_200);
    assert_eq!(nodes.device, expected);
    assert!(nodes.clocks.is_empty());
    assert_eq!(dropped(&nodes), ["status", "vdd-supply"]);
    let Disposition::Dropped(reason) = disposition(&nodes, "status") else { panic!() };
    assert!(reason.contains("works"), "{reason}");
}

#[test]
fn names_are_kept_for_the_regions_and_interrupts_that_vfio_has() {
    let names: &[(&str, &[u8])] =
        &[("reg-names", b"a\0b\0"), ("interrupt-names", b"only\0"), ("reset-names", b"core\0")];
    let fake = host("x@0", names);
    let irqs = [(Spi(3), Trigger::Edge), (Spi(4), Trigger::Edge)];
    // More names than regions, and fewer than interrupts: those that name something.
    let nodes = builder(&fake, "x@0").build(&[(0xc00_0000, 0x1000)], &irqs);
    assert_eq!(nodes.device.get("reg-names").cloned(), strings(&["a"]));
    assert_eq!(nodes.device.get("interrupt-names").cloned(), strings(&["only"]));
    assert_eq!(disposition(&nodes, "interrupt-names"), &Disposition::Kept);
    assert_eq!(nodes.device.get("reset-names").cloned(), strings(&["core"]));
    let nodes = builder(&fake, "x@0").build(&[], &[]);
    for (name, reason) in [
        ("reg-names", "VFIO has no region of it"),
        ("interrupt-names", "VFIO has no interrupt of it"),
    ] {
        assert_eq!(nodes.device.get(name), None);
        assert_eq!(disposition(&nodes, name), &Disposition::Dropped(reason.into()));
    }
}

#[test]
fn a_device_inherits_dma_coherent_from_its_bus() {
    let fake = host("bus/x@0", &[("reg", &cells(&[0, 0, 1]))]);
    fake.write(Path::new(BASE).join("bus/dma-coherent"), "");
    let nodes = builder(&fake, "bus/x@0").build(ONE, &[]);
    assert_eq!(nodes.device.get("dma-coherent"), Some(&Value::Empty));
    assert_eq!(disposition(&nodes, "dma-coherent"), &Disposition::Made);
    let but = host("bus/x@0", &[("dma-noncoherent", b"")]);
    but.write(Path::new(BASE).join("bus/dma-coherent"), "");
    let nodes = builder(&but, "bus/x@0").build(ONE, &[]);
    assert_eq!(nodes.device.get("dma-coherent"), None);
    assert_eq!(disposition(&nodes, "dma-noncoherent"), &Disposition::Kept);
}

#[test]
fn names_that_a_blob_cannot_have_are_left_out() {
    let fake = host("x@0", &[("a b", b""), ("c d/label", b"x\0")]);
    let nodes = builder(&fake, "x@0").build(ONE, &[]);
    assert_eq!(dropped(&nodes), ["a b", "c d/"]);
    boot::fdt::to_blob(&Node::new("").child(nodes.device)).unwrap();
}

#[test]
fn a_malformed_node_is_an_error_that_names_the_file() {
    let fake = host("x@0", &[("compatible", b"unterminated")]);
    let tree = HostTree::at(&fake.host().device_tree()).unwrap();
    let node = tree.node_at("x@0").unwrap();
    let options = NodeOptions::default();
    let given = HostDeviceNode { node: &node, name: "1.dev", options: &options };
    let phandles = Arc::new(PhandleMap::new(&tree, &[given]).unwrap());
    let error = NodeBuilder::from_host(&tree, &phandles, &given).unwrap_err();
    assert!(error.to_string().contains("x@0/compatible"), "{error}");
}
