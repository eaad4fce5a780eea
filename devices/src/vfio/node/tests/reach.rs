//! What a device's bus lets it address.

use super::*;

#[test]
fn a_bus_with_dma_ranges_is_in_the_guest_too() {
    let fake = host("bus/x@0", &[("reg", &cells(&[0, 0, 1]))]);
    let bus = Path::new(BASE).join("bus");
    let plain = builder(&fake, "bus/x@0").build(ONE, &[]);
    assert_eq!((&plain.bus, plain.top()), (&None, plain.device.clone()));
    fake.write(Path::new(BASE).join("aliases/x3"), "/bus/x@0\0");
    for (ranges, expected) in [
        (cells(&[]), None),
        // Address of two cells, that above, size of one.
        (cells(&[0, 0, 1, 0, 0x8000_0000]), Some([0, 0, 0, 0, 0, 0x8000_0000])),
        (cells(&[1, 0, 0, 0, 0xffef_0000]), Some([1, 0, 1, 0, 0, 0xffef_0000])),
    ] {
        fake.write(bus.join("dma-ranges"), ranges);
        let nodes = builder(&fake, "bus/x@0").build(ONE, &[]);
        assert_eq!(nodes.device, plain.device);
        let limit = nodes.bus.as_ref().map(|bus| bus.get("dma-ranges").cloned());
        assert_eq!(limit, expected.map(|expected| numbers(&expected)));
        let path = &nodes.aliases[0].path;
        let Some(bus) = &nodes.bus else {
            assert_eq!(path, "/x@c000000");
            continue;
        };
        assert_eq!(bus.get("compatible").cloned(), strings(&["simple-bus"]));
        assert_eq!(bus.get("ranges"), Some(&Value::Empty));
        assert_eq!(nodes.top().children(), std::slice::from_ref(&nodes.device));
        assert_eq!(path, "/bus-1_dev/x@c000000");
    }
}

#[test]
fn dma_ranges_of_the_devices_own_bus_are_kept() {
    let one = cells(&[1]);
    let fake = host(
        "x@0",
        &[
            ("reg", &cells(&[0, 0, 0x1000])),
            ("#address-cells", &one),
            ("#size-cells", &one),
            ("ranges", &cells(&[0, 0, 0, 0x1000])),
            ("dma-ranges", &cells(&[0x8000_0000, 0, 0x4000_0000, 0x4000_0000])),
        ],
    );
    fake.write(Path::new(BASE).join("x@0/y@0/reg"), cells(&[0, 0x100]));
    fake.write(Path::new(BASE).join("x@0/y@0/dma-ranges"), "");
    let nodes = builder(&fake, "x@0").build(ONE, &[]);
    let expected = numbers(&[0x8000_0000, 0, 0x4000_0000, 0x4000_0000]);
    assert_eq!(nodes.device.get("dma-ranges").cloned(), expected);
    assert_eq!(disposition(&nodes, "dma-ranges"), &Disposition::Kept);
    assert_eq!(disposition(&nodes, "y@0/dma-ranges"), &Disposition::Kept);
}
