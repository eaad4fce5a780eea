//! How much an overlay may hold, and how long that takes.

use std::time::Duration;

use boot::fdt::{Node, to_blob};

use super::applied;
use crate::support::cpu_time::cpu_time;

/// An overlay as nobody's dtc makes it: what `more` has beside one fragment for `/` with `content`.
fn made(content: Node, more: Node) -> Vec<u8> {
    let fragment = Node::new("f").string("target-path", "/").child(content);
    to_blob(&Node::new("").child(fragment).child(more)).unwrap()
}

#[test]
fn the_time_that_an_overlay_takes_grows_with_its_size() {
    // Half as much as fits the 2 MiB of a device tree, or the nodes of an overlay. Where the
    // time grew with the square, the first case took hours.
    const MAX_TIME: Duration = Duration::from_secs(60);
    const MANY: u32 = 30_000;
    const NODES: u32 = 8_000;
    let overlay = || Node::new("__overlay__");
    let fixups = |places: Vec<String>| Node::new("__fixups__").strings("gic", places);
    let place = |offset: u32| format!("/f/__overlay__:a:{offset}");
    let own = |offsets: Vec<u32>| {
        let offsets = Node::new("f").child(overlay().cells("a", offsets));
        Node::new("__local_fixups__").child(offsets)
    };
    let nodes = |phandles: u32| {
        let nodes = (1..=NODES).map(|n| match n <= phandles {
            true => Node::new(format!("n{n}")).phandle(n),
            false => Node::new(format!("n{n}")),
        });
        overlay().with_children(nodes)
    };
    let flags = (0..5000).fold(overlay(), |node, n| node.flag(&format!("p{n}")));
    let fragments = (0..2000).map(|n| {
        let content = overlay().child(Node::new(format!("n{n}")));
        Node::new(format!("f{n}")).cells("target", [u32::MAX]).child(content)
    });
    let targets = (0..2000).map(|n| format!("/f{n}:target:0")).collect();
    let cases = [
        (
            "references in one property",
            made(overlay().cells("a", 0..MANY), fixups((0..MANY).map(|n| place(4 * n)).collect())),
        ),
        (
            "references to itself in one property",
            made(
                overlay().phandle(5).cells("a", (0..MANY).map(|_| 5_u32)),
                own((0..MANY).map(|n| 4 * n).collect()),
            ),
        ),
        ("properties of one node", made(flags, Node::new("x"))),
        ("nodes in one", made(nodes(0), Node::new("x"))),
        ("nodes with phandles in one", made(nodes(NODES), Node::new("x"))),
        (
            "symbols",
            made(
                nodes(0),
                (1..=4000).fold(Node::new("__symbols__"), |node, n| {
                    node.string(&format!("s{n}"), format!("/f/__overlay__/n{n}"))
                }),
            ),
        ),
        (
            "fragments",
            to_blob(&Node::new("").with_children(fragments).child(fixups(targets))).unwrap(),
        ),
    ];
    for (what, blob) in cases {
        assert!(blob.len() < 2 << 20, "{what}: {} bytes", blob.len());
        let started = cpu_time();
        let root = applied(&[&blob]).unwrap_or_else(|error| panic!("{what}: {error}"));
        to_blob(&root).unwrap();
        let took = cpu_time() - started;
        assert!(took < MAX_TIME, "{what}: {took:?}");
    }
}

#[test]
fn an_overlay_of_more_parts_than_boards_have_is_refused() {
    let nodes = (0..20_000).map(|n| Node::new(format!("n{n}")));
    let fragments = (0..3000).map(|n| {
        let overlay = Node::new("__overlay__");
        Node::new(format!("f{n}")).string("target-path", "/").child(overlay)
    });
    let cases = [
        (made(Node::new("__overlay__").with_children(nodes), Node::new("x")), "16384 nodes"),
        (to_blob(&Node::new("").with_children(fragments)).unwrap(), "2048 fragments"),
        (made(Node::new("__overlay__"), deep_fixup()), "is invalid"),
    ];
    for (blob, expected) in cases {
        let error = applied(&[&blob]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// A fixup for a path that is deeper than any tree.
fn deep_fixup() -> Node {
    let path = "/a".repeat(500_000);
    Node::new("__fixups__").string("gic", format!("{path}:a:0"))
}
