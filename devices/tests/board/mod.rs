//! A board's compiled device tree, laid out as Linux shows it, and guests' nodes made of it.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use boot::fdt::host::{HostNode, HostTree};
use boot::fdt::{Node, from_blob};
use devices::irq::{Spi, Trigger};
use devices::vfio::bindings;
use devices::vfio::export::{ExportDevice, ExportError, Format, export};
use devices::vfio::node::{
    GuestNodes, HostDeviceNode, NodeBuilder, NodeError, NodeOptions, PhandleMap, alias,
};

/// The rate in Hz that clocks get whose rates nobody knows.
pub const SOME_RATE: u32 = 100_000_000;

/// A board's tree in a directory of its own, gone when dropped.
pub struct Unflattened {
    directory: PathBuf,
    /// The tree, as strait reads a host's.
    pub tree: HostTree,
}

impl Unflattened {
    /// Of a blob.
    pub fn of(blob: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("strait-board-{}-{number}", std::process::id());
        // Thousands of small files are better off in memory.
        let shared = Path::new("/dev/shm");
        let place = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let directory = place.join(name);
        let root = from_blob(blob).unwrap_or_else(|error| panic!("{error}"));
        write(&root, &directory);
        let tree = HostTree::at(&directory).unwrap();
        Self { directory, tree }
    }

    /// The nodes of its devices: those with registers and interrupts.
    pub fn devices(&self) -> Vec<HostNode> {
        let mut pending = vec![self.tree.node_at("/").unwrap()];
        let mut devices = Vec::new();
        while let Some(node) = pending.pop() {
            pending.extend(node.children().iter().cloned());
            if node.has("reg") && (node.has("interrupts") || node.has("interrupts-extended")) {
                devices.push(node);
            }
        }
        devices
    }
}

impl Drop for Unflattened {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Lays a node out as a directory (Linux drivers/of/kobj.c).
fn write(node: &Node, directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    for property in node.properties() {
        let bytes = property.value.to_bytes().unwrap();
        fs::write(directory.join(&property.name), bytes).unwrap();
    }
    if let Some(phandle) = node.get_phandle() {
        fs::write(directory.join("phandle"), phandle.to_be_bytes()).unwrap();
    }
    for child in node.children() {
        let taken = directory.join(child.name()).exists();
        let name = if taken { format!("{}#1", child.name()) } else { child.name().to_owned() };
        write(child, &directory.join(name));
    }
}

/// A device: its node, and what sysfs calls it.
pub type Device<'a> = (&'a HostNode, &'a str);

/// What a guest gets of devices that it is given together, with places for all that they have.
pub fn guest_nodes(tree: &HostTree, devices: &[Device<'_>]) -> Vec<GuestNodes> {
    let clk_debugfs = PathBuf::from("/nonexistent");
    let options = NodeOptions { clk_debugfs, ..NodeOptions::default() };
    let given = devices.iter().map(|(node, name)| HostDeviceNode { node, name, options: &options });
    let given: Vec<HostDeviceNode<'_>> = given.collect();
    let phandles = Arc::new(PhandleMap::new(tree, &given).unwrap());
    let (mut gpa, mut spi) = (0x0c00_0000_u64, 64);
    let mut nodes = Vec::new();
    for given in &given {
        let builder = refined(tree, &phandles, given);
        let cells = tree.bus_cells(given.node).unwrap();
        let reg = given.node.reg(cells).unwrap_or_default();
        let mut regions = Vec::new();
        for size in reg.iter().map(|range| range.end - range.start) {
            regions.push((gpa, size));
            gpa += size.max(1).next_multiple_of(0x1_0000);
        }
        let count = u32::try_from(tree.interrupts(given.node).unwrap_or_default().len()).unwrap();
        let irqs: Vec<_> = (spi..spi + count).map(|n| (Spi(n), Trigger::Level)).collect();
        spi += count;
        nodes.push(builder.build(&regions, &irqs));
    }
    nodes
}

/// A device's builder, with rates for the clocks that lack them, as the help says.
fn refined(tree: &HostTree, phandles: &Arc<PhandleMap>, given: &HostDeviceNode<'_>) -> NodeBuilder {
    let mut options = given.options.clone();
    for _ in 0..2 {
        let mut builder = NodeBuilder::from_host(tree, phandles, given).unwrap();
        if let Some(binding) = bindings::find(&builder.compatible) {
            (binding.refine)(&mut builder);
        }
        match builder.apply_options(&options).and_then(|()| builder.check()) {
            Ok(()) => return builder,
            Err(NodeError::UnknownRates(clocks)) => {
                options.clock_rates = clocks.into_iter().map(|clock| (clock, SOME_RATE)).collect();
            }
            Err(error) => panic!("{}: {error}", given.name),
        }
    }
    panic!("{}: the rates that it lacks aren't those that it asks for", given.name)
}

/// The source for these devices, each with its name, with their registers at these addresses.
pub fn exported(
    format: Format,
    board: &Unflattened,
    devices: &[Device<'_>],
    gpas: &[Option<u64>],
) -> Result<String, ExportError> {
    let devices: Vec<_> = builders(board, devices);
    let devices =
        devices.iter().map(|(name, builder)| ExportDevice { name, builder, gpas: gpas.to_vec() });
    export(format, &board.tree, &devices.collect::<Vec<_>>())
}

/// The builders of devices that are given to a guest together, with their names.
pub fn builders<'a>(board: &Unflattened, devices: &[Device<'a>]) -> Vec<(&'a str, NodeBuilder)> {
    let options = NodeOptions { clk_debugfs: "/nonexistent".into(), ..NodeOptions::default() };
    let given = devices.iter().map(|(node, name)| HostDeviceNode { node, name, options: &options });
    let given: Vec<HostDeviceNode<'_>> = given.collect();
    let phandles = Arc::new(PhandleMap::new(&board.tree, &given).unwrap());
    let builder = |given: &HostDeviceNode<'_>| refined(&board.tree, &phandles, given);
    devices.iter().map(|(_, name)| *name).zip(given.iter().map(builder)).collect()
}

/// A guest's tree with nothing but these devices in it, and a serial port of its own.
pub fn guest_tree(nodes: &[GuestNodes]) -> Node {
    let aliases = nodes.iter().flat_map(|nodes| nodes.aliases.iter().cloned()).collect();
    let own = [("serial0", "/serial@9000000".to_owned())];
    let aliases = alias::resolve(&own, aliases).unwrap();
    let clocks = nodes.iter().flat_map(|nodes| nodes.clocks.iter().cloned());
    let clocks = Node::new("clocks").label("clocks").with_children(clocks);
    Node::new("")
        .u32("#address-cells", 2)
        .u32("#size-cells", 2)
        .refs("interrupt-parent", ["gic"])
        .child(
            Node::at("intc", 0x0800_0000)
                .label("gic")
                .string("compatible", "arm,gic-v3")
                .flag("interrupt-controller")
                .u32("#interrupt-cells", 3)
                .u32("#address-cells", 0)
                .reg([(0x0800_0000, 0x1_0000)]),
        )
        .child(alias::node(&aliases))
        .child(
            Node::at("serial", 0x0900_0000)
                .string("compatible", "ns16550a")
                .reg([(0x0900_0000, 0x1000)]),
        )
        .child(clocks)
        .with_children(nodes.iter().map(GuestNodes::top))
}

/// Runs dtc, which must be installed; what it made and what it said.
pub fn dtc(arguments: &[&str], input: &[u8]) -> (Vec<u8>, String) {
    let mut child = Command::new("dtc")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need dtc: apt install device-tree-compiler");
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "dtc: {said}");
    (output.stdout, said)
}
