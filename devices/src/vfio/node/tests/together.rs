//! Devices that one guest is given together.

use super::*;

/// Nodes of a host with a DMA controller (phandle 0x40), a UART that uses it, a PHY (0x50) in a
/// device with registers of its own, and one with a clock (0x60) that the UART has.
fn soc() -> FakeHost {
    let one = cells(&[1]);
    let fake = host(
        "uart@0",
        &[
            ("compatible", b"vendor,uart\0"),
            ("dmas", &cells(&[0x40, 3, 0x40, 4])),
            ("dma-names", b"rx\0tx\0"),
            ("phys", &cells(&[0x51])),
            ("vendor,syscon", &cells(&[0x50, 0x14])),
            ("vendor,grf", &cells(&[1])),
            ("clocks", &cells(&[0x60, 1])),
            ("assigned-clocks", &cells(&[0x60])),
        ],
    );
    type Properties<'a> = &'a [(&'a str, &'a [u8])];
    let nodes: &[(&str, Properties<'_>)] = &[
        ("dma@1", &[("phandle", &cells(&[0x40])), ("#dma-cells", &one)]),
        (
            "syscon@2",
            &[
                ("phandle", &cells(&[0x50])),
                ("reg", &cells(&[0, 2, 1])),
                ("phy/phandle", &cells(&[0x51])),
                ("phy/#phy-cells", &cells(&[0])),
            ],
        ),
        (
            "osc@3",
            &[
                ("phandle", &cells(&[0x60])),
                ("#clock-cells", &cells(&[0])),
                ("compatible", b"fixed-clock\0"),
                ("clock-frequency", &cells(&[7])),
            ],
        ),
    ];
    for (node, properties) in nodes {
        for (property, bytes) in *properties {
            fake.write(Path::new(BASE).join(node).join(property), bytes);
        }
    }
    fake
}

fn build_all(node_builders: &[NodeBuilder]) -> Vec<GuestNodes> {
    let at = |index: usize| (0xc00_0000 + 0x1_0000 * u64::try_from(index).unwrap(), 0x1000);
    node_builders
        .iter()
        .enumerate()
        .map(|(index, builder)| builder.build(&[at(index)], &[]))
        .collect()
}

/// Writes a guest's tree, reads it back, and returns its root.
fn written(nodes: &[GuestNodes]) -> Node {
    let devices = nodes.iter().map(|nodes| nodes.device.clone());
    let clocks = nodes.iter().flat_map(|nodes| nodes.clocks.iter().cloned());
    let clocks = Node::new("clocks").with_children(clocks);
    let root = Node::new("").child(clocks).with_children(devices);
    boot::fdt::from_blob(&boot::fdt::to_blob(&root).unwrap()).unwrap()
}

#[test]
fn references_to_other_assigned_devices_are_kept() {
    let fake = soc();
    let none = NodeOptions::default();
    let all = ["uart@0", "dma@1", "syscon@2", "osc@3"].map(|path| (path, path, &none));
    let nodes = build_all(&node_builders(&fake, &all));
    let uart = nodes.first().unwrap();
    let linked = |devices: &[&str]| {
        Disposition::Linked(devices.iter().map(|device| (*device).to_owned()).collect())
    };
    for (property, expected) in [
        ("dmas", linked(&["dma@1"])),
        ("phys", linked(&["syscon@2"])),
        ("vendor,syscon", linked(&["syscon@2"])),
        ("assigned-clocks", linked(&["osc@3"])),
        ("dma-names", Disposition::Kept),
        // One of its clocks is the guest's own device's, the others are the host's.
        ("clocks", Disposition::Rewritten),
    ] {
        assert_eq!(disposition(uart, property), &expected, "{property}");
    }
    assert_eq!(dropped(uart), ["vendor,grf"]);

    let root = written(&nodes);
    let child = |name: &str| root.children().iter().find(|c| c.name().starts_with(name)).unwrap();
    let (uart, dma) = (child("uart"), child("dma"));
    assert_eq!(dma.get_phandle(), Some(0x40));
    assert_eq!(uart.get("dmas").cloned(), numbers(&[0x40, 3, 0x40, 4]));
    assert_eq!(child("syscon").children()[0].get_phandle(), Some(0x51));
    assert_eq!(uart.get("phys").cloned(), numbers(&[0x51]));
    assert_eq!(uart.get("vendor,syscon").cloned(), numbers(&[0x50, 0x14]));
}

#[test]
fn references_to_devices_of_the_host_are_dropped() {
    let fake = soc();
    let none = NodeOptions::default();
    let drop = NodeOptions { drop: vec!["phy".to_owned()], ..NodeOptions::default() };
    // Without the DMA controller, and without the PHY in the device that has it.
    let some = [("uart@0", "uart@0", &none), ("syscon@2", "syscon@2", &drop)];
    let mut node_builders = node_builders(&fake, &some);
    for (builder, (.., options)) in node_builders.iter_mut().zip(some) {
        builder.apply_options(options).unwrap();
    }
    let nodes = build_all(&node_builders);
    let uart = nodes.first().unwrap();
    assert_eq!(dropped(uart), ["assigned-clocks", "dma-names", "dmas", "phys", "vendor,grf"]);
    let Disposition::Dropped(reason) = disposition(uart, "dmas") else { panic!() };
    assert_eq!(reason, "it refers to a controller that stays the host's (/dma@1)");
    written(&nodes);
}

#[test]
fn a_device_below_another_is_beside_it_where_both_are_assigned() {
    let one = cells(&[1]);
    let fake = host(
        "bus@1000",
        &[
            ("phandle", &cells(&[0x40])),
            ("reg", &cells(&[0, 0x1000, 0x100])),
            ("ranges", &cells(&[0, 0, 0x1000, 0x100])),
            ("#address-cells", &one),
            ("#size-cells", &one),
            ("vendor,core-handle", &cells(&[0x41])),
            ("core@80/phandle", &cells(&[0x41])),
            ("core@80/reg", &cells(&[0x80, 0x40])),
            ("core@80/vendor,parent-handle", &cells(&[0x40])),
            ("core@80/port/phandle", &cells(&[0x42])),
            ("spare@c0/phandle", &cells(&[0x43])),
            ("spare@c0/reg", &cells(&[0xc0, 0x40])),
            ("spare@c0/remote-endpoint", &cells(&[0x42])),
        ],
    );
    let none = NodeOptions::default();
    let (bus, core) = (("bus@1000", "bus", &none), ("bus@1000/core@80", "core", &none));
    for order in [[bus, core], [core, bus]] {
        let nodes = build_all(&node_builders(&fake, &order));
        let root = written(&nodes);
        let of = |name: &str| root.children().iter().find(|c| c.name().starts_with(name)).unwrap();
        let below = |node: &Node| {
            node.children().iter().map(|child| child.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            (below(of("bus")), below(of("core"))),
            (vec!["spare@c0".into()], vec!["port".into()])
        );
        assert_eq!(of("core").get_phandle(), Some(0x41));
        let bus = nodes.iter().find(|nodes| nodes.device.name().starts_with("bus")).unwrap();
        assert_eq!(
            disposition(bus, "core@80/"),
            &Disposition::Dropped("it is core, which the guest has beside this device".into())
        );
        let linked = Disposition::Linked(vec!["core".to_owned()]);
        assert_eq!(disposition(bus, "vendor,core-handle"), &linked);
        assert_eq!(disposition(bus, "spare@c0/remote-endpoint"), &linked);
    }
    // Alone, the parent has it.
    let alone = builder(&fake, "bus@1000").build(ONE, &[]);
    assert_eq!(disposition(&alone, "core@80/reg"), &Disposition::Kept);
    assert_eq!(alone.device.children().len(), 2);
}

#[test]
fn references_to_nodes_that_are_not_copied_are_dropped() {
    let one = cells(&[1]);
    let fake = host(
        "bus@1000",
        &[
            ("reg", &cells(&[0, 0x1000, 0x100])),
            ("ranges", &cells(&[0, 0, 0x1000, 0x100])),
            ("#address-cells", &one),
            ("#size-cells", &one),
            ("phys", &cells(&[0x41])),
            ("beyond@100/phandle", &cells(&[0x41])),
            ("beyond@100/#phy-cells", &cells(&[0])),
            ("beyond@100/reg", &cells(&[0x100, 1])),
        ],
    );
    let nodes = [builder(&fake, "bus@1000").build(ONE, &[])];
    assert_eq!(
        disposition(&nodes[0], "phys"),
        &Disposition::Dropped(
            "it refers to a controller that stays the host's (/bus@1000/beyond@100)".into()
        )
    );
    written(&nodes);
}
