//! Paths of nodes and properties below a device's node, such as `mdio/phy@1/clocks`.

use boot::fdt::Node;

/// The path of what is called `name` in the node at `path`; an empty `path` is the device's own.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

/// The node at a path below `node`; `node` itself where that is empty.
pub(super) fn find<'a>(node: &'a Node, path: &str) -> Option<&'a Node> {
    let mut names = path.split('/').filter(|name| !name.is_empty());
    names.try_fold(node, |node, name| node.children().iter().find(|child| child.name() == name))
}

/// Removes the property or the node at a path below `node`; whether it was there.
pub(super) fn remove(node: &mut Node, path: &str) -> bool {
    if let Some((first, rest)) = path.split_once('/') {
        let child = node.children_mut().iter_mut().find(|child| child.name() == first);
        return child.is_some_and(|child| remove(child, rest));
    }
    if node.remove(path).is_some() {
        return true;
    }
    let children = node.children().len();
    node.children_mut().retain(|child| child.name() != path);
    node.children().len() != children
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_nodes_and_properties() {
        let phy = Node::new("phy@1").u32("reg", 1).u32("led", 2);
        let mut node = Node::new("eth").u32("id", 3).child(Node::new("mdio").child(phy));
        assert_eq!(join("", "mdio"), "mdio");
        assert_eq!(find(&node, &join("mdio", "phy@1")).map(Node::name), Some("phy@1"));
        assert_eq!(find(&node, "").map(Node::name), Some("eth"));
        assert!(remove(&mut node, "mdio/phy@1/led") && !remove(&mut node, "mdio/phy@1/led"));
        assert!(remove(&mut node, "id") && !remove(&mut node, "phy@1"));
        assert!(remove(&mut node, "mdio/phy@1"));
        assert_eq!(find(&node, "mdio").map(|mdio| mdio.children().len()), Some(0));
    }
}
