//! crosvm's form: an overlay for its own tree, in which `dt-symbol=` of `--vfio` names the node.
//!
//! crosvm puts addresses and interrupts into the node (`patch_fdt_node`), and offers its interrupt
//! controller as `intc`; the host's numbers stand there until then.

use boot::fdt::host::HostTree;
use boot::fdt::{Node, subtree_to_dts};

use super::{
    ExportDevice, ExportError, aliases, clocks, comment, file_name, label, names, spi, trigger,
    with_cells,
};
use crate::irq::Spi;
use crate::vfio::node::GuestNodes;

/// The label of the interrupt controller in crosvm's tree.
const INTC: &str = "intc";

pub(super) fn export(tree: &HostTree, devices: &[ExportDevice<'_>]) -> Result<String, ExportError> {
    let nodes = devices.iter().map(|device| nodes(tree, device));
    let nodes = nodes.collect::<Result<Vec<GuestNodes>, _>>()?;
    let overlay = with_cells(Node::new("__overlay__"))
        .with_children(aliases(&nodes, "")?)
        .with_children(clocks(&nodes))
        .with_children(nodes.iter().map(GuestNodes::top));
    let fragment = Node::new("fragment@0").string("target-path", "/").child(overlay);
    let root = subtree_to_dts(&Node::new("").child(fragment));
    Ok(format!("{}/dts-v1/;\n/plugin/;\n\n{root}", comment(&usage(devices, &nodes))))
}

fn nodes(tree: &HostTree, device: &ExportDevice<'_>) -> Result<GuestNodes, ExportError> {
    let regions = device.regions()?.into_iter();
    let regions: Vec<(u64, u64)> =
        regions.map(|range| (range.start, range.end.saturating_sub(range.start))).collect();
    let interrupts = device.interrupts(tree);
    let irqs: Vec<_> =
        interrupts.iter().map(|irq| (spi(irq).unwrap_or(Spi(0)), trigger(irq))).collect();
    let mut nodes = device.builder.build(&regions, &irqs);
    if !irqs.is_empty() {
        nodes.device = nodes.device.refs("interrupt-parent", [INTC]);
    }
    Ok(nodes)
}

fn usage(devices: &[ExportDevice<'_>], nodes: &[GuestNodes]) -> String {
    let file = file_name(devices);
    let mut text = format!(
        "{} for crosvm,\nwhich puts its own addresses and interrupts into the nodes:\n  \
         dtc -@ -I dts -O dtb -o {file}.dtbo {file}.dts\n  \
         crosvm run --device-tree-overlay {file}.dtbo,filter",
        names(devices)
    );
    for (device, nodes) in devices.iter().zip(nodes) {
        let (path, symbol) = (device.name, label(nodes));
        text += &format!(" \\\n    --vfio /sys/bus/platform/devices/{path},dt-symbol={symbol}");
    }
    text + " …\n"
}
