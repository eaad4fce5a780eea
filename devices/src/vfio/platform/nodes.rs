//! The nodes of devices that one guest is given, made of the host's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use boot::fdt::host::{HostNode, HostTree};

use super::DeviceError;
use crate::vfio::assign::AssignError;
use crate::vfio::host::HostDevice;
use crate::vfio::node::{Copies, Draft, Given, NodeOptions};

/// The guest's nodes of all these devices, in the making. Where one refers to another on the host,
/// it does in the guest.
///
/// # Errors
///
/// If a device has no node, or a malformed one, or the same as another, or an interrupt that another
/// has.
pub fn drafts(
    tree: &HostTree,
    devices: &[(&HostDevice, &NodeOptions)],
) -> Result<Vec<Draft>, DeviceError> {
    let mut nodes: Vec<HostNode> = Vec::with_capacity(devices.len());
    for (device, _) in devices {
        let node = node_of(tree, device)?;
        let same = nodes.iter().position(|other| other.directory() == node.directory());
        if let Some((other, _)) = same.and_then(|index| devices.get(index)) {
            let (name, other) = (device.name().to_owned(), other.name().to_owned());
            return Err(DeviceError::SameNode { name, other });
        }
        nodes.push(node);
    }
    check_interrupts(tree, &nodes, devices)?;
    let given = nodes.iter().zip(devices).map(|(node, (device, options))| Given {
        node,
        name: device.name(),
        options,
    });
    let given: Vec<Given<'_>> = given.collect();
    let copies = Copies::of(tree, &given)
        .map_err(|(name, source)| DeviceError::HostTree { name: name.to_owned(), source })?;
    let copies = Arc::new(copies);
    let draft = |given: &Given<'_>| {
        Draft::of(tree, &copies, given)
            .map_err(|source| DeviceError::HostTree { name: given.name.to_owned(), source })
    };
    given.iter().map(draft).collect()
}

/// Checks that no two of the devices share an interrupt: VFIO requests each for itself alone
/// (`vfio_set_trigger`), so the second couldn't have it.
fn check_interrupts(
    tree: &HostTree,
    nodes: &[HostNode],
    devices: &[(&HostDevice, &NodeOptions)],
) -> Result<(), DeviceError> {
    if nodes.len() < 2 {
        return Ok(());
    }
    let mut owners: BTreeMap<(PathBuf, Vec<u32>), &str> = BTreeMap::new();
    for (node, (device, _)) in nodes.iter().zip(devices) {
        // Where they can't be made out, VFIO has none.
        for mut interrupt in tree.interrupts(node).unwrap_or_default() {
            // What identifies it: without its flags, and with its kind where the controller has
            // several (Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml).
            interrupt.arguments.truncate(if interrupt.arguments.len() > 2 { 2 } else { 1 });
            let place = (interrupt.provider.directory().to_owned(), interrupt.arguments);
            let other = *owners.entry(place.clone()).or_insert(device.name());
            if other != device.name() {
                let numbers: Vec<String> = place.1.iter().map(u32::to_string).collect();
                return Err(DeviceError::SharedInterrupt {
                    name: device.name().to_owned(),
                    other: other.to_owned(),
                    interrupt: numbers.join(" "),
                    controller: tree.path(&interrupt.provider),
                });
            }
        }
    }
    Ok(())
}

/// A device's node on the host.
pub(super) fn node_of(tree: &HostTree, device: &HostDevice) -> Result<HostNode, DeviceError> {
    let name = || device.name().to_owned();
    let directory = device.of_node().map_err(AssignError::Read)?;
    let directory = directory.ok_or_else(|| DeviceError::NoNode { name: name() })?;
    tree.node(&directory).map_err(|source| DeviceError::HostTree { name: name(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::testing::FakeHost;

    /// Drafts of these devices of a host, by their names.
    fn drafts_of(fake: &FakeHost, names: &[&str]) -> Result<Vec<Draft>, DeviceError> {
        let tree = HostTree::at(&fake.host().device_tree()).unwrap();
        let device = |name: &&str| fake.host().find(name).unwrap().unwrap();
        let found: Vec<HostDevice> = names.iter().map(device).collect();
        let options = NodeOptions::default();
        let devices: Vec<_> = found.iter().map(|device| (device, &options)).collect();
        drafts(&tree, &devices)
    }

    #[test]
    fn each_device_has_its_own_node() {
        let fake = FakeHost::with_vfio();
        for name in ["1.dma", "2.dma"] {
            fake.device("platform", name, None, None);
            fake.behind_iommu("platform", name);
        }
        let names: Vec<String> =
            drafts_of(&fake, &["2.dma", "1.dma"]).unwrap().into_iter().map(|d| d.name).collect();
        assert_eq!(names, ["2.dma", "1.dma"]);
    }

    #[test]
    fn devices_that_share_an_interrupt_are_named() {
        let fake = FakeHost::with_vfio();
        let base = "sys/firmware/devicetree/base";
        let cells = |cells: &[u32]| cells.iter().flat_map(|c| c.to_be_bytes()).collect::<Vec<_>>();
        fake.write(format!("{base}/interrupt-parent"), cells(&[1]));
        fake.write(format!("{base}/gic/phandle"), cells(&[1]));
        fake.write(format!("{base}/gic/#interrupt-cells"), cells(&[3]));
        // Kind, number, flags: the same number of another kind is another one.
        for (name, interrupts) in [
            ("1.uart", [0, 5, 4, 0, 9, 4]),
            ("2.uart", [0, 7, 4, 0, 5, 1]),
            ("3.uart", [1, 5, 4, 0, 8, 4]),
        ] {
            fake.device("platform", name, None, None);
            fake.behind_iommu("platform", name);
            fake.write(format!("{base}/{name}/interrupts"), cells(&interrupts));
        }
        assert!(drafts_of(&fake, &["1.uart", "3.uart"]).is_ok());
        let error = drafts_of(&fake, &["1.uart", "3.uart", "2.uart"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "2.uart can't be assigned beside 1.uart: both have interrupt 0 5 of /gic, which VFIO \
             gives to one only"
        );
        assert!(error.help().unwrap().contains("not both"));
    }

    #[test]
    fn devices_that_share_a_node_or_have_none_are_named() {
        let fake = FakeHost::with_vfio();
        for name in ["1.usb", "xhci.1", "bare"] {
            fake.device("platform", name, None, None);
        }
        fake.behind_iommu("platform", "1.usb");
        fake.link("sys/devices/platform/xhci.1/of_node", "sys/firmware/devicetree/base/1.usb");
        let error = drafts_of(&fake, &["1.usb", "xhci.1"]).unwrap_err();
        assert!(matches!(error, DeviceError::SameNode { .. }), "{error}");
        let text = format!("{error}\n{}", error.help().unwrap());
        assert_eq!(text.matches("1.usb").count() + text.matches("xhci.1").count(), 4, "{text}");
        let error = drafts_of(&fake, &["bare"]).unwrap_err();
        assert!(matches!(error, DeviceError::NoNode { .. }), "{error}");
    }
}
