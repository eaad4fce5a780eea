//! The nodes of the devices that are assigned to one guest, made of the host's.

use std::sync::Arc;

use boot::fdt::host::{HostNode, HostTree};

use super::PlatformError;
use super::interrupts::check_interrupts;
use crate::vfio::assign::AssignError;
use crate::vfio::host::{Host, HostDevice};
use crate::vfio::node::{HostDeviceNode, NodeBuilder, NodeOptions, PhandleMap};

/// The builders of the guest's nodes of all these devices, in their order. Where one refers to another
/// on the host, it does in the guest.
///
/// # Errors
///
/// If a device has no node, or a malformed one, or the same as another, or an interrupt that VFIO
/// can't have.
pub fn node_builders(
    host: &Host,
    tree: &HostTree,
    devices: &[(&HostDevice, &NodeOptions)],
) -> Result<Vec<NodeBuilder>, PlatformError> {
    let mut nodes: Vec<HostNode> = Vec::with_capacity(devices.len());
    for (device, _) in devices {
        let node = node_of(tree, device)?;
        let same = nodes.iter().position(|other| other.directory() == node.directory());
        if let Some((other, _)) = same.and_then(|index| devices.get(index)) {
            return Err(PlatformError::SameNode(device.name().to_owned(), other.name().to_owned()));
        }
        nodes.push(node);
    }
    check_interrupts(host, tree, &nodes, devices)?;
    let given = nodes.iter().zip(devices).map(|(node, (device, options))| HostDeviceNode {
        node,
        name: device.name(),
        options,
    });
    let given: Vec<HostDeviceNode<'_>> = given.collect();
    let phandles = PhandleMap::new(tree, &given)
        .map_err(|(name, error)| PlatformError::HostTree(name.to_owned(), error))?;
    let phandles = Arc::new(phandles);
    let builder = |given: &HostDeviceNode<'_>| {
        NodeBuilder::from_host(tree, &phandles, given)
            .map_err(|error| PlatformError::HostTree(given.name.to_owned(), error))
    };
    given.iter().map(builder).collect()
}

/// A device's node on the host.
pub(super) fn node_of(tree: &HostTree, device: &HostDevice) -> Result<HostNode, PlatformError> {
    let name = || device.name().to_owned();
    let directory = device.of_node().map_err(AssignError::Read)?;
    let directory = directory.ok_or_else(|| PlatformError::NoNode(name()))?;
    tree.node(&directory).map_err(|error| PlatformError::HostTree(name(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::testing::FakeHost;
    use boot::help::Help;

    /// The builders of these devices of a host, by their names.
    fn builders_of(fake: &FakeHost, names: &[&str]) -> Result<Vec<NodeBuilder>, PlatformError> {
        let tree = HostTree::at(&fake.host().device_tree()).unwrap();
        let device = |name: &&str| fake.host().find(name).unwrap().unwrap();
        let found: Vec<HostDevice> = names.iter().map(device).collect();
        let options = NodeOptions::default();
        let devices: Vec<_> = found.iter().map(|device| (device, &options)).collect();
        node_builders(&fake.host(), &tree, &devices)
    }

    #[test]
    fn each_device_has_its_own_node() {
        let fake = FakeHost::with_vfio();
        for name in ["1.dma", "2.dma"] {
            fake.device("platform", name, None, None);
            fake.behind_iommu("platform", name);
        }
        let names: Vec<String> =
            builders_of(&fake, &["2.dma", "1.dma"]).unwrap().into_iter().map(|d| d.name).collect();
        assert_eq!(names, ["2.dma", "1.dma"]);
    }

    /// A host whose devices have these interrupts of a GIC: type, number, flags.
    fn with_interrupts(devices: &[(&str, &[u32])]) -> FakeHost {
        let fake = FakeHost::with_vfio();
        let base = "sys/firmware/devicetree/base";
        let cells = |cells: &[u32]| cells.iter().flat_map(|c| c.to_be_bytes()).collect::<Vec<_>>();
        fake.write(format!("{base}/interrupt-parent"), cells(&[1]));
        fake.write(format!("{base}/gic/phandle"), cells(&[1]));
        fake.write(format!("{base}/gic/#interrupt-cells"), cells(&[3]));
        for (name, interrupts) in devices {
            fake.device("platform", name, Some("vfio-platform"), None);
            fake.behind_iommu("platform", name);
            fake.write(format!("{base}/{name}/interrupts"), cells(interrupts));
        }
        fake
    }

    #[test]
    fn devices_that_share_an_interrupt_are_named() {
        // The same number of another type is another one.
        let fake = with_interrupts(&[
            ("1.uart", &[0, 5, 4, 0, 9, 4]),
            ("2.uart", &[0, 7, 4, 0, 5, 1]),
            ("3.uart", &[1, 5, 4, 0, 8, 4]),
        ]);
        assert!(builders_of(&fake, &["1.uart", "3.uart"]).is_ok());
        let error = builders_of(&fake, &["1.uart", "3.uart", "2.uart"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "2.uart can't be assigned beside 1.uart: both have interrupt 0 5 of /gic, which VFIO \
             gives to one only"
        );
        assert!(error.help().unwrap().contains("not both"));
    }

    #[test]
    fn a_node_that_lists_an_interrupt_twice_is_refused() {
        let fake = with_interrupts(&[("1.uart", &[0, 5, 4, 0, 6, 4, 0, 5, 4])]);
        let error = builders_of(&fake, &["1.uart"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1.uart can't be assigned: its node /1.uart lists interrupt 0 5 of /gic twice, which \
             VFIO can request only once"
        );
        assert!(error.help().unwrap().contains("device tree"));
    }

    #[test]
    fn an_interrupt_that_the_host_has_requested_is_refused() {
        let devices: [(&str, &[u32]); 2] = [("1.uart", &[0, 5, 4]), ("2.uart", &[0, 5, 4])];
        let fake = with_interrupts(&devices);
        let table = |handlers: &str| {
            let header = "           CPU0       CPU1\n";
            let line = format!(" 44:         10          3     GICv3  37 Level     {handlers}\n");
            fake.write("proc/interrupts", format!("{header}{line}"));
        };
        let refused = || builders_of(&fake, &["1.uart"]).unwrap_err();
        // Counted once, and nobody's now; or this device's own, in another process.
        for handlers in ["", "vfio-irq[44](1.uart)"] {
            table(handlers);
            assert!(builders_of(&fake, &["1.uart"]).is_ok(), "{handlers}");
        }
        // Another guest has the other.
        table("vfio-irq[44](2.uart)");
        let error = refused();
        assert_eq!(
            error.to_string(),
            "1.uart can't be assigned: its interrupt 0 5 of /gic is also that of 2.uart, which \
             another guest has, and VFIO can't share it"
        );
        assert!(error.help().unwrap().contains("end that guest"));
        // The host's driver has it.
        fake.rebind("platform", "2.uart", Some("uart-pl011"));
        table("uart-pl011");
        let error = refused();
        assert_eq!(
            error.to_string(),
            "1.uart can't be assigned: its interrupt 0 5 of /gic is also that of 2.uart (driver \
             uart-pl011), and VFIO can't share it"
        );
        assert!(error.help().unwrap().contains("strait device bind 2.uart"));
        // A dry run with both finds that they can't be together, whoever has them now.
        let error = builders_of(&fake, &["1.uart", "2.uart"]).unwrap_err();
        assert!(matches!(error, PlatformError::SharedInterrupt { .. }), "{error}");
        // As long as its own driver has it, nothing is known.
        assert!(builders_of(&fake, &["2.uart"]).is_ok());
        // No device's.
        fake.rebind("platform", "2.uart", None);
        table("some timer");
        let error = refused();
        assert!(error.to_string().contains("is also that of some timer (/proc/interrupts)"));
        // Of another controller, or another number.
        fake.write("proc/interrupts", "  CPU0\n 1: 0 GICv3 5 Level x\n 2: 0 pmic 37 Level x\n");
        assert!(builders_of(&fake, &["1.uart"]).is_ok());
    }

    #[test]
    fn devices_that_share_a_node_or_have_none_are_named() {
        let fake = FakeHost::with_vfio();
        for name in ["1.usb", "xhci.1", "bare"] {
            fake.device("platform", name, None, None);
        }
        fake.behind_iommu("platform", "1.usb");
        fake.link("sys/devices/platform/xhci.1/of_node", "sys/firmware/devicetree/base/1.usb");
        let error = builders_of(&fake, &["1.usb", "xhci.1"]).unwrap_err();
        assert!(matches!(error, PlatformError::SameNode(..)), "{error}");
        let text = format!("{error}\n{}", error.help().unwrap());
        assert_eq!(text.matches("1.usb").count() + text.matches("xhci.1").count(), 4, "{text}");
        let error = builders_of(&fake, &["bare"]).unwrap_err();
        assert!(matches!(error, PlatformError::NoNode(_)), "{error}");
    }
}
