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
    draft_with(fake, name, &NodeOptions::default())
}

/// With no rates but those in the tree, whatever debugfs is where the test runs.
fn draft_with(fake: &FakeHost, name: &str, options: &NodeOptions) -> Draft {
    let tree = HostTree::at(&fake.host().device_tree()).unwrap();
    let node = tree.node_at(name).unwrap();
    let options = NodeOptions { rates: fake.path("sys/kernel/debug/clk"), ..options.clone() };
    let mut draft = Draft::of(&tree, &node, "1.dev", &options).unwrap();
    draft.apply(&options).unwrap();
    draft
}

/// What was left out, by path.
fn dropped(nodes: &GuestNodes) -> Vec<String> {
    let dropped = nodes.account.iter().filter(|a| matches!(a.fate, Fate::Dropped(_)));
    dropped.map(Account::path).collect()
}

/// What became of the property or node at this path.
fn fate<'a>(nodes: &'a GuestNodes, path: &str) -> &'a Fate {
    let found: Vec<_> = nodes.account.iter().filter(|a| a.path() == path).collect();
    let [only] = found.as_slice() else { panic!("{path}: {found:?} of {:?}", nodes.account) };
    &only.fate
}

const ONE: &[(u64, u64)] = &[(0xc00_0000, 0x1000)];

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
    let fates = [
        ("compatible", Fate::Rewritten),
        ("reg", Fate::Rewritten),
        ("clocks", Fate::Rewritten),
        ("clock-names", Fate::Kept),
        ("dma-coherent", Fate::Kept),
        ("#dma-cells", Fate::Kept),
    ];
    for (property, expected) in fates {
        assert_eq!(fate(&nodes, property), &expected, "{property}");
    }
}

#[test]
fn a_pl330_from_the_amba_bus_gets_the_same_node() {
    let platform = dmac_nodes(&dmac(b"arm,pl330\0", &[]));
    let amba = dmac_nodes(&dmac(b"arm,pl330\0arm,primecell\0", &[]));
    assert_eq!((&platform.device, &platform.clocks), (&amba.device, &amba.clocks));
    assert_eq!(fate(&amba, "compatible"), &Fate::Kept);
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
    let Fate::Dropped(reason) = fate(&nodes, "status") else { panic!() };
    assert!(reason.contains("works"), "{reason}");
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
fn a_clock_without_a_known_rate_is_an_error_that_names_the_option() {
    // Clock 2 takes an argument.
    let clocks = cells(&[2, 5, 1, 0]);
    let fake = host("x@0", &[("clocks", &clocks), ("clock-names", b"core\0bus\0none\0")]);
    let error = draft(&fake, "x@0").check().unwrap_err();
    assert_eq!(error, NodeError::UnknownRates { clocks: vec!["core".to_owned()] });
    let help = error.help("1.dev");
    assert!(help.starts_with("--vfio-platform 1.dev,clock-rate=core:HZ "), "{help}");

    let clock_rates = vec![("core".to_owned(), 7)];
    let given = draft_with(&fake, "x@0", &NodeOptions { clock_rates, ..NodeOptions::default() });
    given.check().unwrap();
    let nodes = given.finish(ONE, &[]);
    assert_eq!(nodes.device.get("clock-names").cloned(), strings(&["core", "bus", "none"]));
    let label = |label: &str| Cell::Ref(label.into());
    let clocks = vec![label("_1_dev_clock0"), label("_1_dev_clock1"), Cell::U32(0)];
    assert_eq!(nodes.device.get("clocks"), Some(&Value::Cells(clocks)));
    let rates: Vec<_> =
        nodes.clocks.iter().map(|node| node.get("clock-frequency").cloned().unwrap()).collect();
    assert_eq!(rates, [numbers(&[7]).unwrap(), numbers(&[24_000_000]).unwrap()]);

    // Nobody asks for the rate of a clock that the guest doesn't have.
    let drop = vec!["clocks".to_owned(), "clock-names".to_owned()];
    let without = draft_with(&fake, "x@0", &NodeOptions { drop, ..NodeOptions::default() });
    without.check().unwrap();
    let nodes = without.finish(ONE, &[]);
    assert!(nodes.clocks.is_empty());
    assert_eq!(fate(&nodes, "clocks"), &Fate::Dropped("drop=clocks".into()));
}

#[test]
fn clocks_that_refer_to_nothing_are_dropped_with_the_reason() {
    let fake = host("x@0", &[("clocks", &cells(&[77]))]);
    let draft = draft(&fake, "x@0");
    draft.check().unwrap();
    let nodes = draft.finish(ONE, &[]);
    let Fate::Dropped(reason) = fate(&nodes, "clocks") else { panic!() };
    assert!(reason.contains("phandle 0x4d"), "{reason}");
}

#[test]
fn what_a_person_says_wins() {
    let fake = dmac(b"arm,pl330\0", &[("child/label", b"x\0"), ("child/odd", b"y\0")]);
    let options = NodeOptions {
        name: Some("mine".to_owned()),
        compatible: vec!["vendor,mine".to_owned()],
        clock_rates: vec![("0".to_owned(), 1)],
        drop: vec!["#dma-cells".to_owned(), "child/odd".to_owned()],
        ..NodeOptions::default()
    };
    let tree = HostTree::at(&fake.host().device_tree()).unwrap();
    let node = tree.node_at("dma@2c0a0000").unwrap();
    let mut draft = Draft::of(&tree, &node, "1.dev", &options).unwrap();
    // The binding's names come before: the clock has one by now.
    bindings::find(&draft.compatible).unwrap().refine(&mut draft);
    let error = draft.apply(&options).unwrap_err();
    assert_eq!(error.help("1.dev"), "it has these: apb_pclk");
    let options = NodeOptions { clock_rates: vec![("apb_pclk".to_owned(), 1)], ..options };
    draft.apply(&options).unwrap();
    draft.check().unwrap();
    let nodes = draft.finish(ONE, &[]);
    assert_eq!(nodes.device.name(), "mine@c000000");
    assert_eq!(nodes.device.get("compatible").cloned(), strings(&["vendor,mine"]));
    assert_eq!(nodes.clocks[0].get("clock-frequency").cloned(), numbers(&[1]));
    let reasons: Vec<_> = ["#dma-cells", "child/odd"].map(|path| fate(&nodes, path)).into();
    let expected = ["drop=#dma-cells", "drop=child/odd"].map(|why| Fate::Dropped(why.into()));
    assert_eq!(reasons, expected.iter().collect::<Vec<_>>());
    assert_eq!(fate(&nodes, "child/label"), &Fate::Kept);
}

#[test]
fn a_person_can_only_change_what_is_there() {
    let fake = dmac(b"arm,pl330\0", &[]);
    let none = NodeOptions::default();
    let cases = [
        NodeOptions { drop: vec!["iommus".to_owned()], ..none.clone() },
        NodeOptions { drop: vec!["child/label".to_owned()], ..none.clone() },
        NodeOptions { drop: vec![String::new()], ..none.clone() },
        NodeOptions { name: Some("a@1".to_owned()), ..none.clone() },
        NodeOptions { name: Some(String::new()), ..none.clone() },
        NodeOptions { clock_rates: vec![("core".to_owned(), 1)], ..none },
    ];
    for options in cases {
        let mut draft = draft(&fake, "dma@2c0a0000");
        let result = draft.apply(&options).and_then(|()| draft.check());
        assert!(result.is_err_and(|error| !error.help("1.dev").is_empty()), "{options:?}");
    }
}

#[test]
fn coherence_of_the_bus_is_the_devices() {
    let fake = host("bus/x@0", &[("reg", &cells(&[0, 0, 1]))]);
    fake.write(Path::new(BASE).join("bus/dma-coherent"), "");
    let nodes = draft(&fake, "bus/x@0").finish(ONE, &[]);
    assert_eq!(nodes.device.get("dma-coherent"), Some(&Value::Empty));
    assert_eq!(fate(&nodes, "dma-coherent"), &Fate::Made);
    let but = host("bus/x@0", &[("dma-noncoherent", b"")]);
    but.write(Path::new(BASE).join("bus/dma-coherent"), "");
    let nodes = draft(&but, "bus/x@0").finish(ONE, &[]);
    assert_eq!(nodes.device.get("dma-coherent"), None);
    assert_eq!(fate(&nodes, "dma-noncoherent"), &Fate::Kept);
}

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
fn properties_that_name_nodes_below_still_do() {
    let nodes = draft(&stmmac(), "eth@0").finish(ONE, &[]);
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
        assert_eq!(fate(&nodes, kept), &Fate::Kept, "{kept}");
    }
    let Fate::Dropped(reason) = fate(&nodes, "vendor,grf") else { panic!() };
    assert_eq!(reason, "it refers to a node that stays the host's (/clk24)");
    // The PHY's clock is the host's, its interrupt is no interrupt of the device's.
    assert_eq!(fate(&nodes, "mdio/phy@1/clocks"), &Fate::Rewritten);
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
    let error = draft(&fake, "eth@0").check().unwrap_err();
    assert_eq!(error, NodeError::UnknownRates { clocks: vec!["mdio/phy@1/0".to_owned()] });
    let clock_rates = vec![("mdio/phy@1/0".to_owned(), 25_000_000)];
    let options = NodeOptions { clock_rates, ..NodeOptions::default() };
    draft_with(&fake, "eth@0", &options).check().unwrap();
    let drop = vec!["mdio".to_owned()];
    let options = NodeOptions { drop, ..NodeOptions::default() };
    let without = draft_with(&fake, "eth@0", &options);
    without.check().unwrap();
    let nodes = without.finish(ONE, &[]);
    assert_eq!(fate(&nodes, "mdio/"), &Fate::Dropped("drop=mdio".into()));
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
    let nodes = draft(&fake, "x@0").finish(&[(0xc00_0000, 0x100), (0xc01_0000, 0x1000)], &[]);
    let names: Vec<&str> = nodes.device.children().iter().map(Node::name).collect();
    assert_eq!(names, ["in@80", "none", "second@8010"]);
    let ranges = numbers(&[0, 0, 0xc00_0000, 0x100, 0x8000, 0, 0xc01_0800, 0x100]);
    assert_eq!(nodes.device.get("ranges").cloned(), ranges);
    assert_eq!(dropped(&nodes), ["beyond@80/", "elsewhere@4000/", "second@8010/deeper@20/"]);
    assert_eq!(fate(&nodes, "in@80/reg"), &Fate::Kept);

    // With an empty `ranges` they are at the host's own addresses.
    let (reg, child) = (cells(&[0, 0x1000, 0x100]), cells(&[0x1040, 8]));
    let same: &[(&str, &[u8])] = &[
        ("reg", &reg),
        ("ranges", b""),
        ("#address-cells", &one),
        ("#size-cells", &one),
        ("in@1040/reg", &child),
    ];
    let nodes = draft(&host("x@0", same), "x@0").finish(ONE, &[]);
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
    let nodes = draft(&host("x@0", pci), "x@0").finish(ONE, &[]);
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
    let nodes = draft(&host("x@0", own), "x@0").finish(ONE, &[]);
    let expected = ["d/interrupt-parent", "d/interrupts", "e/interrupts-extended"];
    assert_eq!(dropped(&nodes), expected);
    for kept in ["a/interrupts", "b/interrupt-parent", "b/interrupts", "c/interrupts-extended"] {
        assert_eq!(fate(&nodes, kept), &Fate::Kept, "{kept}");
    }
}

#[test]
fn names_that_a_blob_cannot_have_are_left_out() {
    let fake = host("x@0", &[("a b", b""), ("c d/label", b"x\0")]);
    let nodes = draft(&fake, "x@0").finish(ONE, &[]);
    assert_eq!(dropped(&nodes), ["a b", "c d/"]);
    boot::fdt::to_blob(&Node::new("").child(nodes.device)).unwrap();
}

#[test]
fn a_malformed_node_is_an_error_that_names_the_file() {
    let fake = host("x@0", &[("compatible", b"unterminated")]);
    let tree = HostTree::at(&fake.host().device_tree()).unwrap();
    let node = tree.node_at("x@0").unwrap();
    let error = Draft::of(&tree, &node, "1.dev", &NodeOptions::default()).unwrap_err();
    assert!(error.to_string().contains("x@0/compatible"), "{error}");
}
