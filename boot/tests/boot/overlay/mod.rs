//! Overlays, compiled by dtc.

mod judge;
mod limits;
mod merge;
mod random;
mod refused;

use boot::fdt::Node;
use boot::fdt::overlay::{Overlay, OverlayError, apply};

use crate::support::dtc::compile;

fn overlay(body: &str) -> Vec<u8> {
    compile(&format!("/dts-v1/;\n/plugin/;\n{body}"))
}

/// A guest's tree in small.
fn base() -> Node {
    Node::new("")
        .refs("interrupt-parent", ["gic"])
        .child(Node::new("chosen").string("bootargs", "quiet"))
        .child(Node::at("intc", 0x800_0000).label("gic").flag("interrupt-controller"))
        .child(
            Node::new("clocks")
                .label("clocks")
                .child(Node::new("apb-pclk").label("apb_pclk").u32("#clock-cells", 0)),
        )
        .child(
            Node::at("dma-controller", 0xc00_0000)
                .label("_2c0a0000_dma")
                .phandle(0x8003)
                .reg([(0xc00_0000, 0x1000)])
                .refs("clocks", ["apb_pclk"])
                .child(Node::at("channel", 1).u32("reg", 1)),
        )
}

/// The tree with these overlays.
fn applied(overlays: &[&[u8]]) -> Result<Node, OverlayError> {
    let mut root = base();
    let overlays = overlays.iter().enumerate();
    let overlays: Vec<Overlay> = overlays
        .map(|(n, blob)| Overlay::read(format!("{n}.dtbo"), blob))
        .collect::<Result<_, _>>()?;
    apply(&mut root, &overlays)?;
    Ok(root)
}
