use std::path::Path;

use boot::fdt::Cell;

use super::super::bindings;
use super::super::testing::FakeHost;
use super::*;

const BASE: &str = "sys/firmware/devicetree/base";

fn cells(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

/// A host whose tree has one device with these properties, and clocks with the phandles 1 (24 MHz)
/// and 2 (of no known rate).
fn host(name: &str, properties: &[(&str, &[u8])]) -> FakeHost {
    let fake = FakeHost::new();
    let clock = |name: &str, phandle, properties: &[(&str, &[u8])]| {
        let node = Path::new(BASE).join(name);
        fake.write(node.join("phandle"), cells(&[phandle]));
        fake.write(node.join("#clock-cells"), cells(&[u32::from(phandle == 2)]));
        for (property, bytes) in properties {
            fake.write(node.join(property), bytes);
        }
    };
    let rate = cells(&[24_000_000]);
    clock("clk24", 1, &[("compatible", b"fixed-clock\0"), ("clock-frequency", &rate)]);
    clock("cru", 2, &[("compatible", b"vendor,clocks\0")]);
    for (property, bytes) in properties {
        fake.write(Path::new(BASE).join(name).join(property), bytes);
    }
    fake
}

fn draft(fake: &FakeHost, name: &str) -> Draft {
    let tree = HostTree::at(&fake.host().device_tree()).unwrap();
    let node = tree.node_at(name).unwrap();
    Draft::of(&tree, &node).unwrap()
}

fn names(node: &Node) -> Vec<&str> {
    node.properties().iter().map(|property| property.name.as_str()).collect()
}

fn strings(strings: &[&str]) -> Option<Value> {
    Some(Value::Strings(strings.iter().map(|&s| s.to_owned()).collect()))
}

fn numbers(numbers: &[u32]) -> Option<Value> {
    Some(Value::Cells(numbers.iter().map(|n| Cell::U32(*n)).collect()))
}

/// The node of a PL330 as the model's board has it.
fn dmac(compatible: &[u8], more: &[(&str, &[u8])]) -> FakeHost {
    let (reg, clocks) = (cells(&[0, 0x2c0a_0000, 0, 0x1000]), cells(&[1]));
    let (iommus, interrupts) = (cells(&[9, 0xe0]), cells(&[0, 176, 4, 0, 177, 4]));
    let dma_cells = cells(&[1]);
    let mut properties: Vec<(&str, &[u8])> = vec![
        ("compatible", compatible),
        ("reg", &reg),
        ("interrupts", &interrupts),
        ("iommus", &iommus),
        ("clocks", &clocks),
        ("clock-names", b"apb_pclk\0"),
        ("#dma-cells", &dma_cells),
    ];
    properties.extend(more);
    host("dma@2c0a0000", &properties)
}

fn dmac_nodes(fake: &FakeHost) -> GuestNodes {
    let mut draft = draft(fake, "dma@2c0a0000");
    bindings::find(&draft.compatible).unwrap().refine(&mut draft);
    let irqs = [(Spi(40), Trigger::Level), (Spi(41), Trigger::Level)];
    draft.finish(&[(0xc00_0000, 0x1000)], &irqs)
}

#[test]
fn a_pl330_gets_the_node_that_its_driver_takes() {
    let nodes = dmac_nodes(&dmac(b"arm,pl330\0", &[("dma-coherent", b"")]));
    let expected = Node::at("dma-controller", 0xc00_0000)
        .strings("compatible", ["arm,pl330", "arm,primecell"])
        .reg([(0xc00_0000, 0x1000)])
        .cells("interrupts", [0u32, 40, 4, 0, 41, 4])
        .refs("clocks", ["clock_c000000_0"])
        .strings("clock-names", ["apb_pclk"])
        .flag("dma-coherent")
        .u32("#dma-cells", 1);
    assert_eq!(nodes.device, expected);
    let clock = Node::new("clock-c000000-0")
        .label("clock_c000000_0")
        .string("compatible", "fixed-clock")
        .u32("#clock-cells", 0)
        .u32("clock-frequency", 24_000_000);
    assert_eq!(nodes.clocks, [clock]);
    let dropped: Vec<_> = nodes.dropped.iter().map(|dropped| dropped.name.as_str()).collect();
    assert_eq!(dropped, ["iommus"]);
}

#[test]
fn a_pl330_from_the_amba_bus_gets_the_same_node() {
    let platform = dmac_nodes(&dmac(b"arm,pl330\0", &[]));
    let amba = dmac_nodes(&dmac(b"arm,pl330\0arm,primecell\0", &[]));
    assert_eq!(platform, amba);
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
fn any_device_gets_its_own_node_with_its_places_exchanged() {
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
    let nodes = draft(&fake, "serial@2c0e0000").finish(&regions, &irqs);
    let expected = Node::at("serial", 0xc00_0000)
        .strings("compatible", ["vendor,uart"])
        .reg(regions)
        .strings("reg-names", ["regs", "fifo"])
        .cells("interrupts", [0u32, 3, 1, 0, 4, 4])
        .strings("interrupt-names", ["rx", "tx"])
        .u32("current-speed", 115_200);
    assert_eq!(nodes.device, expected);
    assert!(nodes.clocks.is_empty());
    assert!(matches!(nodes.dropped.as_slice(), [Dropped { name, .. }] if name == "vdd-supply"));
}

#[test]
fn names_are_cut_to_what_vfio_has_and_left_out_where_too_few() {
    let fake = host("x@0", &[("reg-names", b"a\0b\0"), ("interrupt-names", b"only\0")]);
    let irqs = [(Spi(3), Trigger::Edge), (Spi(4), Trigger::Edge)];
    let nodes = draft(&fake, "x@0").finish(&[(0xc00_0000, 0x1000)], &irqs);
    assert_eq!(nodes.device.get("reg-names").cloned(), strings(&["a"]));
    assert_eq!(nodes.device.get("interrupt-names"), None);
}

#[test]
fn clocks_keep_their_rates_and_those_without_are_dropped_by_name() {
    // Clock 2 takes an argument.
    let clocks = cells(&[2, 5, 1, 0]);
    let fake = host("x@0", &[("clocks", &clocks), ("clock-names", b"core\0bus\0none\0")]);
    let nodes = draft(&fake, "x@0").finish(&[(0xc00_0000, 0x1000)], &[]);
    assert_eq!(nodes.device.get("clock-names").cloned(), strings(&["bus"]));
    let labels = Some(Value::Cells(vec![Cell::Ref("clock_c000000_1".into())]));
    assert_eq!(nodes.device.get("clocks").cloned(), labels);
    let dropped: Vec<_> = nodes.dropped.iter().map(|dropped| dropped.name.as_str()).collect();
    assert_eq!(dropped, ["core", "none"]);
}

#[test]
fn clocks_that_refer_to_nothing_are_dropped_with_the_reason() {
    let fake = host("x@0", &[("clocks", &cells(&[77]))]);
    let draft = draft(&fake, "x@0");
    let [dropped] = draft.dropped.as_slice() else { panic!("{:?}", draft.dropped) };
    assert_eq!(dropped.name, "clocks");
    assert!(dropped.reason.contains("phandle 0x4d"), "{}", dropped.reason);
}

#[test]
fn children_are_copied_unless_they_are_at_addresses_of_the_host() {
    let one = cells(&[1]);
    let children: &[(&str, &[u8])] = &[
        ("compatible", b"vendor,bus\0"),
        ("#address-cells", &one),
        ("#size-cells", &[0; 4]),
        ("port@1/reg", &one),
        ("port@1/label", b"a\0"),
        ("port@1/phy-handle", &one),
        ("port@1/interrupts", &one),
    ];
    let copied = draft(&host("x@0", children), "x@0").finish(&[(0xc00_0000, 0x1000)], &[]);
    let port = Node::new("port@1").string("label", "a").cells("reg", [1u32]);
    assert_eq!(copied.device.children(), [port]);
    assert_eq!(copied.device.get("#address-cells").cloned(), numbers(&[1]));
    let dropped: Vec<_> = copied.dropped.iter().map(|dropped| dropped.name.as_str()).collect();
    assert_eq!(dropped, ["port@1/interrupts", "port@1/phy-handle"]);

    let addressed = [children, &[("ranges", b"")]].concat();
    let left_out = draft(&host("x@0", &addressed), "x@0").finish(&[(0xc00_0000, 0x1000)], &[]);
    assert!(left_out.device.children().is_empty());
    assert!(!names(&left_out.device).contains(&"#address-cells"));
    assert_eq!(left_out.dropped[0].name, "port@1");
}

#[test]
fn a_malformed_node_is_an_error_that_names_the_file() {
    let fake = host("x@0", &[("compatible", b"unterminated")]);
    let tree = HostTree::at(&fake.host().device_tree()).unwrap();
    let error = Draft::of(&tree, &tree.node_at("x@0").unwrap()).unwrap_err();
    assert!(error.to_string().contains("x@0/compatible"), "{error}");
}
