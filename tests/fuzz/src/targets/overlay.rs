//! Device tree overlays, and blobs of trees.

use arbitrary::Unstructured;
use boot::fdt::overlay::{Overlay, apply};
use boot::fdt::{Node, from_blob, to_blob, to_dts};
use boot::help::Help;

use crate::tree::Words;

/// What dtc makes an overlay of (dtc Documentation/dt-object-internal.txt), and what it may change.
const WORDS: Words = Words {
    nodes: &[
        "__overlay__",
        "fragment@0",
        "fragment@1",
        "__fixups__",
        "__local_fixups__",
        "__symbols__",
        "chosen",
        "clocks",
        "intc@8000000",
        "dma-controller@c000000",
        "channel@1",
        "new",
    ],
    properties: &[
        "target",
        "target-path",
        "phandle",
        "linux,phandle",
        "gic",
        "apb_pclk",
        "clocks",
        "reg",
        "bootargs",
        "symbol",
        "status",
    ],
    texts: &[
        "/",
        "/chosen",
        "/clocks",
        "/dma-controller@c000000",
        "/fragment@0:target:0",
        "/fragment@1:target:0",
        "/fragment@0/__overlay__:clocks:0",
        "/fragment@0/__overlay__:reg:4",
        "/fragment@0/__overlay__/new:clocks:4294967292",
        "/fragment@0/__overlay__",
        "/fragment@1/__overlay__/new",
        "::",
        "",
    ],
};

pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let blobs: Vec<Vec<u8>> = match kind % 4 {
        0 => vec![rest.to_vec()],
        // Two overlays.
        1 => {
            let (first, second) = rest.split_at(rest.len() / 2);
            [first, second].into_iter().filter_map(blob).collect()
        }
        _ => blob(rest).into_iter().collect(),
    };
    let read = |blob: &Vec<u8>| match Overlay::read("fuzz.dtbo", blob) {
        Ok(overlay) => Some(overlay),
        Err(error) => {
            drop((error.to_string(), error.help()));
            None
        }
    };
    let overlays: Vec<Overlay> = blobs.iter().filter_map(read).collect();
    if let Some(tree) = blobs.first().and_then(|blob| from_blob(blob).ok()) {
        same_again(&tree);
    }
    let mut root = base();
    match apply(&mut root, &overlays) {
        Ok(without_effect) => {
            without_effect.iter().for_each(|place| drop(place.to_string()));
            same_again(&root);
        }
        Err(error) => drop((error.to_string(), error.help())),
    }
}

fn blob(bytes: &[u8]) -> Option<Vec<u8>> {
    to_blob(&WORDS.tree(&mut Unstructured::new(bytes)).ok()?).ok()
}

/// A tree that can be written can be read, and is the same when it is written again.
fn same_again(tree: &Node) {
    drop(to_dts(tree));
    if let Ok(blob) = to_blob(tree) {
        let read = from_blob(&blob).expect("what was written can be read");
        assert!(to_blob(&read).expect("what was read can be written") == blob, "{}", to_dts(tree));
    }
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
                .label("dma")
                .phandle(0x8003)
                .reg([(0xc00_0000, 0x1000)])
                .refs("clocks", ["apb_pclk"])
                .child(Node::at("channel", 1).u32("reg", 1)),
        )
}
