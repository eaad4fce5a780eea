//! A node of the host's device tree as source.

use boot::fdt::host::HostNode;
use boot::fdt::{self, Node};

/// The node and what is below it, its properties as what they most likely are.
pub fn source(node: &HostNode) -> String {
    fdt::subtree_to_dts(&copy(node))
}

/// How deep children are followed is bounded by the reader of the tree.
fn copy(node: &HostNode) -> Node {
    let mut copied = Node::new(node.name());
    for property in node.properties() {
        copied.set(&property.name, property.value());
    }
    copied.with_children(node.children().iter().map(copy))
}
