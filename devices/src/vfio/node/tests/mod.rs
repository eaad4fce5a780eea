mod below;
mod clocks;
mod device;
mod firmware;
mod options;
mod reach;
mod together;

use std::path::Path;
use std::sync::Arc;

use boot::fdt::host::HostTree;
use boot::fdt::{Cell, Node, Value};

use super::super::bindings;
use super::super::testing::FakeHost;
use super::*;
use crate::irq::{Spi, Trigger};

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

fn builder(fake: &FakeHost, name: &str) -> NodeBuilder {
    builder_with(fake, name, &NodeOptions::default())
}

fn builder_with(fake: &FakeHost, name: &str, options: &NodeOptions) -> NodeBuilder {
    let mut builder = unrefined(fake, name, options);
    builder.apply_options(options).unwrap();
    builder
}

/// As the host has it.
fn unrefined(fake: &FakeHost, path: &str, options: &NodeOptions) -> NodeBuilder {
    node_builders(fake, &[(path, "1.dev", options)]).remove(0)
}

/// Of devices that are assigned together: the paths of their nodes, their names, what is said of
/// them.
fn node_builders(fake: &FakeHost, devices: &[(&str, &str, &NodeOptions)]) -> Vec<NodeBuilder> {
    let tree = HostTree::at(&fake.host().device_tree()).unwrap();
    // With no rates but those in the tree, whatever debugfs is where the test runs.
    let rates = fake.path("sys/kernel/debug/clk");
    let devices: Vec<_> = devices
        .iter()
        .map(|(path, name, options)| {
            let options = NodeOptions { clk_debugfs: rates.clone(), ..(*options).clone() };
            (tree.node_at(path).unwrap(), *name, options)
        })
        .collect();
    let given: Vec<_> = devices
        .iter()
        .map(|(node, name, options)| HostDeviceNode { node, name, options })
        .collect();
    let phandles = Arc::new(PhandleMap::new(&tree, &given).unwrap());
    given.iter().map(|given| NodeBuilder::from_host(&tree, &phandles, given).unwrap()).collect()
}

/// What was left out, by path.
fn dropped(nodes: &GuestNodes) -> Vec<String> {
    let dropped =
        nodes.properties.iter().filter(|a| matches!(a.disposition, Disposition::Dropped(_)));
    dropped.map(PropertyReport::path).collect()
}

/// What became of the property or node at this path.
fn disposition<'a>(nodes: &'a GuestNodes, path: &str) -> &'a Disposition {
    let found: Vec<_> = nodes.properties.iter().filter(|a| a.path() == path).collect();
    let [only] = found.as_slice() else { panic!("{path}: {found:?} of {:?}", nodes.properties) };
    &only.disposition
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
    let mut builder = builder(fake, "dma@2c0a0000");
    (bindings::find(&builder.compatible).unwrap().refine)(&mut builder);
    let irqs = [(Spi(40), Trigger::Level), (Spi(41), Trigger::Level)];
    builder.build(&[(0xc00_0000, 0x1000)], &irqs)
}
