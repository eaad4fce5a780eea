//! The kinds of device: each needs other things of the host.

use boot::fdt::host::{HostError, HostNode, HostTree};
use devices::vfio::host::{Host, HostBus, HostDevice, ReadError};
use serde::Serialize;

/// A kind of device, by how a guest is given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Of the platform bus.
    Platform,
    /// Of the AMBA bus.
    Amba,
    /// Of the PCI bus.
    Pci,
    /// Of another process, over vfio-user: it needs neither an IOMMU nor the host's VFIO.
    VfioUser,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Platform, Self::Amba, Self::Pci, Self::VfioUser];

    /// Those of the host's own devices.
    pub const OF_HOST: [Self; 3] = [Self::Platform, Self::Amba, Self::Pci];

    /// The kind of a bus's devices.
    pub fn on(bus: HostBus) -> Self {
        match bus {
            HostBus::Platform => Self::Platform,
            HostBus::Amba => Self::Amba,
            HostBus::Pci => Self::Pci,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Amba => "AMBA",
            Self::Pci => "PCI",
            Self::VfioUser => "vfio-user",
        }
    }
}

/// The names of kinds, as in "platform and AMBA".
pub fn names(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" and ")
}

/// The host's devices that an IOMMU confines, bridges left out.
pub struct ConfinedDevices(Vec<ConfinedDevice>);

/// One of them.
struct ConfinedDevice {
    kind: Kind,
    device: HostDevice,
    /// Its messages are isolated from those of others.
    isolated: bool,
}

impl ConfinedDevices {
    /// Those of a host.
    ///
    /// # Errors
    ///
    /// A device's attributes can't be read.
    pub fn of(host: &Host) -> Result<Self, ReadError> {
        let tree = HostTree::at(&host.device_tree()).ok();
        let mut confined = Vec::new();
        for bus in HostBus::ALL {
            for device in host.devices_on(bus) {
                if !device.behind_iommu()? || device.is_bridge()? || is_unconfined(host, &device)? {
                    continue;
                }
                let isolated = has_isolated_msi(tree.as_ref(), &device);
                confined.push(ConfinedDevice { kind: Kind::on(bus), device, isolated });
            }
        }
        Ok(Self(confined))
    }

    /// Those of a kind.
    pub fn devices(&self, kind: Kind) -> impl Iterator<Item = &HostDevice> {
        self.0.iter().filter(move |confined| confined.kind == kind).map(|c| &c.device)
    }

    /// How many of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.devices(kind).count()
    }

    /// The kinds of which there are any; all of the host's where there is none at all.
    pub fn kinds(&self) -> Vec<Kind> {
        let any = |kind: &Kind| self.0.is_empty() || self.count(*kind) > 0;
        Kind::OF_HOST.into_iter().filter(any).collect()
    }

    /// Whether VFIO accepts devices of this kind only with `allow_unsafe_interrupts`: none of them has
    /// isolated messages.
    pub fn needs_unsafe_interrupts(&self, kind: Kind) -> bool {
        !self.0.iter().any(|confined| confined.kind == kind && confined.isolated)
    }
}

/// Whether its group has no IOMMU behind it (`CONFIG_VFIO_NOIOMMU`).
fn is_unconfined(host: &Host, device: &HostDevice) -> Result<bool, ReadError> {
    device.group()?.map_or(Ok(false), |group| host.group(group).is_noiommu())
}

/// `compatible` of an ITS (arm,gic-v3.yaml, arm,gic-v5-iwb.yaml).
const ISOLATING: [&str; 2] = ["arm,gic-v3-its", "arm,gic-v5-its"];

/// Whether the interrupt controller keeps this device from sending other devices' messages, on which VFIO
/// insists (`iommu_group_has_isolated_msi` in the kernel).
///
/// An Arm host's ITS does: it knows each device by its requester ID. GICv2m frames and controllers
/// within PCI host bridges don't, and for a device without messages it isn't known. The messages of a PCI
/// function that no device tree describes are taken to be isolated: its controller isn't known.
fn has_isolated_msi(tree: Option<&HostTree>, device: &HostDevice) -> bool {
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
impl ConfinedDevices {
    /// A device of each of these kinds, none of which has isolated messages but the PCI function.
    pub fn of_kinds(kinds: &[Kind]) -> Self {
        let root = std::env::temp_dir().join(format!("strait-confined-{}", std::process::id()));
        let confined = kinds.iter().filter_map(|kind| {
            let bus = HostBus::ALL.into_iter().find(|bus| Kind::on(*bus) == *kind)?;
            let path = root.join("bus").join(bus.name()).join("devices/1.x");
            std::fs::create_dir_all(&path).ok()?;
            let device = Host::at(&root, &root, &root, &root).find_on(bus, "1.x").ok()??;
            Some(ConfinedDevice { kind: *kind, device, isolated: *kind == Kind::Pci })
        });
        let confined = confined.collect();
        let _ = std::fs::remove_dir_all(&root);
        Self(confined)
    }
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
