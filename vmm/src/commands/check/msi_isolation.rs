//! Whether the interrupt controller keeps devices from sending each other's message-signalled
//! interrupts, on which VFIO insists (`iommu_group_has_isolated_msi` in the kernel).
//!
//! An Arm host's ITS does: it knows each device by its requester ID. GICv2m frames and controllers
//! within PCI host bridges don't, and for a device without messages nobody can say.

use boot::fdt::host::{HostError, HostNode, HostTree};
use devices::vfio::host::{HostBus, HostDevice};

/// What the binding of an ITS is called (arm,gic-v3.yaml, arm,gic-v5-iwb.yaml).
const ISOLATING: [&str; 2] = ["arm,gic-v3-its", "arm,gic-v5-its"];

/// Whether those of this device are isolated. A PCI function of a host whose firmware doesn't
/// describe it by a device tree is taken to be: its controllers can't be told.
pub fn are_isolated(tree: Option<&HostTree>, device: &HostDevice) -> bool {
    let above = if device.bus() == HostBus::Pci { usize::MAX } else { 1 };
    let mut described = false;
    for directory in device.path().ancestors().take(above) {
        let Some(node) = tree.and_then(|tree| tree.node(&directory.join("of_node")).ok()) else {
            continue;
        };
        described = true;
        if let Some(isolated) = tree.and_then(|tree| by_node(tree, &node).transpose()) {
            return isolated.unwrap_or(false);
        }
    }
    device.bus() == HostBus::Pci && !described
}

/// What a node says: by `msi-map` of a PCI host bridge (entries of a requester ID, a controller, an
/// identity there, and a length; dt-schema, pci-msi.yaml) or by `msi-parent`; nothing where it has
/// neither.
fn by_node(tree: &HostTree, node: &HostNode) -> Result<Option<bool>, HostError> {
    let map = node.cells("msi-map")?.unwrap_or_default();
    let mapped = map.chunks_exact(4).filter_map(|entry| entry.get(1).copied());
    let parent = node.cells("msi-parent")?.unwrap_or_default();
    let controllers: Vec<u32> = mapped.chain(parent.first().copied()).collect();
    if controllers.is_empty() {
        return Ok(None);
    }
    for phandle in controllers {
        let Some(controller) = tree.by_phandle(phandle)? else { return Ok(Some(false)) };
        let names = controller.strings("compatible")?.unwrap_or_default();
        if !names.iter().any(|name| ISOLATING.contains(name)) {
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A tree in a directory of its own.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("strait-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }

        fn node(&self, name: &str, properties: &[(&str, &[u8])]) {
            let directory = self.0.join(name);
            fs::create_dir_all(&directory).unwrap();
            for (property, bytes) in properties {
                fs::write(directory.join(property), bytes).unwrap();
            }
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_its_isolates_and_a_gicv2m_frame_does_not() {
        let tree = Tree::new("messages");
        tree.node("its", &[("compatible", b"arm,gic-v3-its\0"), ("phandle", &[0, 0, 0, 1])]);
        tree.node("v2m", &[("compatible", b"arm,gic-v2m-frame\0"), ("phandle", &[0, 0, 0, 2])]);
        let cells = |cells: &[u32]| cells.iter().flat_map(|c| c.to_be_bytes()).collect::<Vec<_>>();
        let host = HostTree::at(&tree.0).unwrap();
        for (property, value, expected) in [
            ("msi-map", cells(&[0, 1, 0, 0x10000]), Some(true)),
            ("msi-map", cells(&[0, 1, 0, 0x8000, 0x8000, 2, 0, 0x8000]), Some(false)),
            ("msi-parent", cells(&[1]), Some(true)),
            ("msi-parent", cells(&[1, 7]), Some(true)),
            ("msi-parent", cells(&[2]), Some(false)),
            ("msi-parent", cells(&[9]), Some(false)),
            ("interrupts", cells(&[1]), None),
        ] {
            let name = format!("{property}{}", value.len() + usize::from(value[3]));
            tree.node(&name, &[(property, &value)]);
            let node = host.node(&tree.0.join(&name)).unwrap();
            assert_eq!(by_node(&host, &node).unwrap(), expected, "{property} {value:?}");
        }
    }
}
