//! The host's device tree as sysfs has it, and the guest's nodes that are made of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arbitrary::Unstructured;
use boot::fdt::host::{HostNode, HostTree};
use boot::fdt::{Node, to_blob};
use devices::irq::{Spi, Trigger};
use devices::vfio::bindings;
use devices::vfio::node::{HostDeviceNode, NodeBuilder, NodeOptions, PhandleMap};

use crate::scratch::Scratch;
use crate::tree::Words;

/// What strait looks for in a host's tree.
const WORDS: Words = Words {
    nodes: &[
        "soc",
        "dma@1000",
        "clock",
        "intc@8000000",
        "aliases",
        "ethernet@2000",
        "phy@1",
        "mdio",
        "port",
        "a.b",
    ],
    properties: &[
        "#address-cells",
        "#size-cells",
        "reg",
        "ranges",
        "dma-ranges",
        "interrupts",
        "interrupt-parent",
        "interrupts-extended",
        "#interrupt-cells",
        "interrupt-controller",
        "interrupt-map",
        "compatible",
        "clocks",
        "clock-names",
        "#clock-cells",
        "clock-frequency",
        "phandle",
        "dma-coherent",
        "dma-noncoherent",
        "reg-names",
        "interrupt-names",
        "phy-handle",
        "iommus",
        "resets",
        "name",
        "dma0",
        "ethernet0",
        "assigned-clock-rates",
        "clock-output-names",
        "status",
    ],
    texts: &[
        "simple-bus",
        "fixed-clock",
        "arm,gic-v3",
        "arm,pl330",
        "arm,pl011",
        "arm,primecell",
        "apb_pclk",
        "/soc/dma@1000",
        "/dma@1000",
        "/soc/ethernet@2000",
        "okay",
        "",
        "ref",
    ],
};

/// The most nodes that are taken for devices.
const MAX_DEVICES: usize = 4;

pub fn run(data: &[u8]) {
    let Ok(root) = WORDS.tree(&mut Unstructured::new(data)) else { return };
    let scratch = Scratch::new();
    let base = scratch.path().join("base");
    write(&root, &base);
    let tree = HostTree::at(&base).expect("the directory is there");
    let _ = tree.aliases();
    let _ = tree.by_phandle(1);
    let Ok(root) = tree.node_at("/") else { return };
    let mut found = Vec::new();
    look(&tree, &root, &mut found);
    found.truncate(MAX_DEVICES);
    assign(&tree, &found);
}

/// Lays a node out as a directory (Linux drivers/of/kobj.c).
fn write(node: &Node, directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    for property in node.properties() {
        let bytes = property.value.to_bytes().expect("there are no references");
        // Where there is a node of this name, it stays.
        let _ = fs::write(directory.join(&property.name), bytes);
    }
    for child in node.children() {
        let directory = directory.join(child.name());
        if !directory.is_file() {
            write(child, &directory);
        }
    }
}

/// Asks all that is asked of a node.
fn look<'a>(tree: &HostTree, node: &'a HostNode, found: &mut Vec<&'a HostNode>) {
    let _ = tree.parent(node);
    let _ = tree.is_dma_coherent(node);
    let _ = tree.bus_dma_limit(node);
    let _ = tree.bus_dma_limit_below(node);
    for interrupt in tree.interrupts(node).unwrap_or_default() {
        let _ = interrupt.is_level_triggered();
    }
    if let Ok(cells) = tree.bus_cells(node) {
        let reg = node.reg(cells).unwrap_or_default();
        let _ = reg.first().map(|range| tree.translate(node, range.start));
        let _ = node.ranges(cells.address).map(|ranges| ranges.translate(0x1000));
        let _ = node.dma_ranges(cells.address).map(|ranges| ranges.translate(0x1000));
    }
    if node.has("compatible") {
        found.push(node);
    }
    node.children().iter().for_each(|child| look(tree, child, found));
}

/// Makes the guest's nodes of these devices.
fn assign(tree: &HostTree, devices: &[&HostNode]) {
    let clk_debugfs = PathBuf::from("/nonexistent");
    let options = NodeOptions { clk_debugfs, ..NodeOptions::default() };
    let names: Vec<String> = (0..devices.len()).map(|n| format!("{n}.device")).collect();
    let given = devices.iter().zip(&names);
    let given: Vec<_> =
        given.map(|(node, name)| HostDeviceNode { node, name, options: &options }).collect();
    let Ok(phandles) = PhandleMap::new(tree, &given) else { return };
    let phandles = Arc::new(phandles);
    for device in &given {
        let Ok(mut builder) = NodeBuilder::from_host(tree, &phandles, device) else { continue };
        if let Some(binding) = bindings::find(&builder.compatible) {
            (binding.refine)(&mut builder);
        }
        let _ = builder.apply_options(&options);
        let _ = builder.check();
        let irqs = [(Spi(64), Trigger::Level), (Spi(65), Trigger::Edge)];
        let nodes = builder.build(&[(0xc00_0000, 0x1000), (0xc01_0000, 0x100)], &irqs);
        let clocks = Node::new("clocks").with_children(nodes.clocks.iter().cloned());
        let _ = to_blob(&Node::new("").child(nodes.top()).child(clocks));
        nodes
            .properties
            .iter()
            .for_each(|report| drop((report.path(), report.disposition.reason())));
    }
}
