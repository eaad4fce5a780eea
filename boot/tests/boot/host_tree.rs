//! The host's tree, read from directories as sysfs has them.

use boot::help::Help;
use std::os::unix::fs::symlink;
use std::path::Path;

use boot::fdt::host::{BusCells, HostError, HostTree, MAX_PROPERTY_SIZE};
use boot::fdt::{Node, Value, subtree_to_dts};

use crate::support::scratch::Scratch;

/// The system model's tree in small: a bus with a DMA controller and its clock.
fn board() -> Scratch {
    let board = Scratch::new();
    for (file, content) in [
        ("base/#address-cells", &b"\0\0\0\x02"[..]),
        ("base/#size-cells", b"\0\0\0\x02"),
        ("base/name", b"\0"),
        ("base/apb-pclk/compatible", b"fixed-clock\0"),
        ("base/apb-pclk/#clock-cells", b"\0\0\0\0"),
        ("base/apb-pclk/clock-frequency", b"\x01\x6e\x36\0"),
        ("base/apb-pclk/phandle", b"\0\0\x80\0"),
        ("base/scmi/protocol@14/#clock-cells", b"\0\0\0\x01"),
        ("base/scmi/protocol@14/linux,phandle", b"\0\0\0\x05"),
        ("base/soc/#address-cells", b"\0\0\0\x01"),
        ("base/soc/name", b"soc\0"),
        ("base/soc/dma@2c0a0000/name", b"dma\0"),
        ("base/soc/dma@2c0a0000/phandle", b"\0\0\0\x07"),
        ("base/soc/dma@2c0a0000/compatible", b"arm,pl330\0arm,primecell\0"),
        ("base/soc/dma@2c0a0000/reg", b"\x2c\x0a\0\0\0\0\x10\0"),
        ("base/soc/dma@2c0a0000/clocks", b"\0\0\x80\0\0\0\0\0\0\0\0\x05\0\0\0\x2a"),
        ("base/soc/dma@2c0a0000/dma-coherent", b""),
        ("base/soc/dma@2c0a0000/security-key", b"secret"),
        ("base/soc/dma@2c0a0000/channel@1/odd", b"\x01\x02\x03"),
        ("base/soc/dma@2c0a0000/channel#1/label", b"x\0"),
    ] {
        board.write(file, content);
    }
    board
}

fn tree(board: &Scratch) -> HostTree {
    HostTree::at(&board.path().join("base")).unwrap()
}

#[test]
fn a_node_is_read_sorted_without_phandle_name_or_secrets() {
    let board = board();
    symlink("base/soc/dma@2c0a0000", board.path().join("of_node")).unwrap();
    let tree = tree(&board);
    let node = tree.node(&board.path().join("of_node")).unwrap();
    assert_eq!(node, tree.node_at("/soc/dma@2c0a0000").unwrap());
    assert_eq!(node.name(), "dma@2c0a0000");
    assert_eq!(node.phandle(), Some(7));
    let names: Vec<&str> = node.properties().iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["clocks", "compatible", "dma-coherent", "reg"]);
    // Linux named the second node after a property of the same name.
    let children: Vec<&str> = node.children().iter().map(|c| c.name()).collect();
    assert_eq!(children, ["channel", "channel@1"]);
    assert_eq!(node.children()[1].bytes("odd"), Some(&[1, 2, 3][..]));
    assert!(node.directory().ends_with("base/soc/dma@2c0a0000"));
    assert_eq!(tree.node_at("/").unwrap().name(), "");
}

#[test]
fn properties_are_read_as_what_they_are() {
    let board = board();
    let tree = tree(&board);
    let node = tree.node_at("/soc/dma@2c0a0000").unwrap();
    assert_eq!(node.strings("compatible").unwrap().unwrap(), ["arm,pl330", "arm,primecell"]);
    assert!(node.is_compatible("arm,primecell").unwrap());
    assert!(!node.is_compatible("arm").unwrap());
    assert_eq!(node.cells("reg").unwrap().unwrap(), [0x2c0a_0000, 0x1000]);
    assert_eq!(node.cells("missing").unwrap(), None);
    assert!(node.has("dma-coherent") && !node.has("iommus"));
    // `#size-cells` of the bus is missing.
    assert_eq!(tree.bus_cells(&node).unwrap(), BusCells { address: 1, size: 1 });
    let soc = tree.parent(&node).unwrap().unwrap();
    assert_eq!((soc.name(), soc.children()), ("soc", &[][..]));
    assert_eq!(tree.bus_cells(&soc).unwrap(), BusCells { address: 2, size: 2 });
    let root = tree.parent(&soc).unwrap().unwrap();
    assert_eq!(tree.parent(&root).unwrap(), None);
}

#[test]
fn values_are_guessed_for_people() {
    let board = board();
    let node = tree(&board).node_at("/soc/dma@2c0a0000").unwrap();
    let copy = node
        .properties()
        .iter()
        .chain(node.children().iter().flat_map(|c| c.properties()))
        .fold(Node::new("copy"), |copy, p| copy.with(&p.name, p.value()));
    assert_eq!(
        subtree_to_dts(&copy),
        "copy {\n\
         \tclocks = <0x8000 0x0 0x5 0x2a>;\n\
         \tcompatible = \"arm,pl330\", \"arm,primecell\";\n\
         \tdma-coherent;\n\
         \treg = <0x2c0a0000 0x1000>;\n\
         \tlabel = \"x\";\n\
         \todd = [01 02 03];\n\
         };\n"
    );
    assert_eq!(copy.get("dma-coherent"), Some(&Value::Empty));
}

#[test]
fn references_are_resolved_by_what_their_provider_says() {
    let board = board();
    let tree = tree(&board);
    let node = tree.node_at("/soc/dma@2c0a0000").unwrap();
    let clocks = tree.references(&node, "clocks", Some("#clock-cells")).unwrap();
    let [Some(fixed), None, Some(scmi)] = clocks.as_slice() else { panic!("{clocks:?}") };
    assert_eq!((fixed.provider.name(), fixed.arguments.as_slice()), ("apb-pclk", &[][..]));
    assert_eq!(tree.clock_rate(fixed, Path::new("/nonexistent")).unwrap(), Some(24_000_000));
    assert_eq!((scmi.provider.name(), scmi.arguments.as_slice()), ("protocol@14", &[42][..]));
    assert_eq!(tree.clock_rate(scmi, Path::new("/nonexistent")).unwrap(), None);
    assert!(tree.references(&node, "resets", Some("#reset-cells")).unwrap().is_empty());
    assert_eq!(tree.by_phandle(7).unwrap().unwrap().name(), "dma@2c0a0000");
    assert_eq!(tree.by_phandle(8).unwrap(), None);
}

#[test]
fn a_reference_that_leads_nowhere_names_its_file() {
    for (clocks, text) in [
        (&b"\0\0\0\x09"[..], "clocks refers to phandle 0x9, which no node of the host has"),
        (b"\0\0\0\x05", "clocks ends within a reference: 1 cells should follow its phandle"),
        (b"\0\0\0\x05\0", "clocks should hold 32-bit cells, but has 5 bytes"),
        (b"\0\0\0\x07", "clocks refers to its node"),
    ] {
        let board = board();
        let file = board.write("base/soc/dma@2c0a0000/clocks", clocks);
        let tree = tree(&board);
        let node = tree.node_at("/soc/dma@2c0a0000").unwrap();
        let error = tree.references(&node, "clocks", Some("#clock-cells")).unwrap_err().to_string();
        assert!(error.ends_with(text), "{error}");
        assert!(error.contains(file.canonicalize().unwrap().to_str().unwrap()), "{error}");
    }
}

/// Reads all there is to know of the DMA controller.
fn read_all(board: &Scratch) -> Result<(), HostError> {
    let tree = tree(board);
    let node = tree.node_at("/soc/dma@2c0a0000")?;
    node.strings("compatible")?;
    tree.bus_cells(&node)?;
    tree.references(&node, "clocks", Some("#clock-cells"))?
        .iter()
        .flatten()
        .try_for_each(|clock| tree.clock_rate(clock, Path::new("/nonexistent")).map(drop))
}

#[test]
fn malformed_properties_are_errors_that_name_the_file() {
    read_all(&board()).unwrap();
    let huge = vec![0; usize::try_from(MAX_PROPERTY_SIZE).unwrap() + 1];
    for (file, content, text) in [
        ("soc/dma@2c0a0000/phandle", &b"abc"[..], "should hold one 32-bit cell, but has 3 bytes"),
        ("soc/dma@2c0a0000/compatible", b"abc", "should hold NUL-terminated text"),
        ("soc/dma@2c0a0000/compatible", b"\xff\0", "should hold NUL-terminated text"),
        ("soc/dma@2c0a0000/compatible", b"", "should hold NUL-terminated text"),
        ("soc/#address-cells", b"", "should hold one 32-bit cell, but has 0 bytes"),
        ("apb-pclk/clock-frequency", &[0; 8], "should hold one 32-bit cell, but has 8 bytes"),
        ("soc/dma@2c0a0000/big", &huge, "has more than 2 MiB"),
    ] {
        let board = board();
        board.write(&format!("base/{file}"), content);
        let error = read_all(&board).unwrap_err().to_string();
        assert!(error.ends_with(&format!("/base/{file} {text}")), "{error}");
    }
}

#[test]
fn a_tree_cannot_contain_itself_or_go_too_deep() {
    for link in ["soc/dma@2c0a0000/up", "scmi/all"] {
        let board = board();
        symlink("..", board.path().join("base").join(link)).unwrap();
        let error = read_all(&board).unwrap_err().to_string();
        assert!(error.ends_with(&format!("{link} is neither a node nor a property")), "{error}");
    }
    let board = board();
    board.write(&format!("base/soc/dma@2c0a0000/{}x", "d/".repeat(64)), "");
    let error = read_all(&board).unwrap_err().to_string();
    assert!(error.ends_with("/d lies deeper than 64 levels"), "{error}");
}

#[test]
fn a_property_may_have_the_size_of_a_whole_tree_but_all_together_are_bounded() {
    let board = board();
    let size = usize::try_from(MAX_PROPERTY_SIZE).unwrap();
    for index in 0..7 {
        board.write(&format!("base/soc/dma@2c0a0000/big{index}"), vec![0; size]);
    }
    assert!(tree(&board).node_at("/soc/dma@2c0a0000").is_ok());
    board.write("base/soc/dma@2c0a0000/big7", vec![0; size]);
    let error = tree(&board).node_at("/soc/dma@2c0a0000").unwrap_err().to_string();
    assert!(error.ends_with("dma@2c0a0000 has more than 16 MiB"), "{error}");
}

#[test]
fn what_is_missing_is_said() {
    let board = board();
    let error = HostTree::at(&board.path().join("none")).unwrap_err();
    assert!(matches!(&error, HostError::NoTree { .. }) && error.help().is_some(), "{error}");
    let error = tree(&board).node_at("/soc/dma@1").unwrap_err();
    assert!(matches!(&error, HostError::NoNode { path } if path.ends_with("soc/dma@1")), "{error}");
    let error = tree(&board).node(Path::new("/nonexistent/of_node")).unwrap_err();
    assert!(matches!(error, HostError::NoNode { .. }), "{error}");
}

#[test]
fn interrupts_lead_to_their_controllers() {
    let board = Scratch::new();
    for (file, content) in [
        ("base/interrupt-parent", &b"\0\0\0\x01"[..]),
        ("base/gic/#interrupt-cells", b"\0\0\0\x03"),
        ("base/gic/phandle", b"\0\0\0\x01"),
        ("base/gpio/#interrupt-cells", b"\0\0\0\x02"),
        ("base/gpio/phandle", b"\0\0\0\x02"),
        ("base/soc/plain/interrupts", b"\0\0\0\0\0\0\0\x07\0\0\0\x04\0\0\0\0\0\0\0\x08\0\0\0\x01"),
        (
            "base/soc/both/interrupts-extended",
            b"\0\0\0\x02\0\0\0\x05\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0\x09\0\0\0\0",
        ),
        ("base/soc/none/reg", b""),
        ("base/soc/short/interrupts", b"\0\0\0\x01"),
        ("base/other/interrupt-parent", b"\0\0\0\x09"),
        ("base/other/x/interrupts", b"\0\0\0\x01"),
    ] {
        board.write(file, content);
    }
    let tree = tree(&board);
    let found = |path: &str| {
        let all = tree.interrupts(&tree.node_at(path).unwrap())?;
        let each = all.iter().map(|i| (i.provider.name().to_owned(), i.is_level_triggered()));
        Ok::<Vec<_>, HostError>(each.collect())
    };
    let gic = |level| ("gic".to_owned(), level);
    let plain = [gic(Some(true)), gic(Some(false))];
    assert_eq!(found("/soc/plain").unwrap(), plain);
    assert_eq!(found("/soc/both").unwrap(), [("gpio".to_owned(), Some(true)), gic(None)]);
    assert!(found("/soc/none").unwrap().is_empty());
    assert!(matches!(found("/soc/short"), Err(HostError::Length { .. })));
    assert!(matches!(found("/other/x"), Err(HostError::NoCells { .. })));
}
