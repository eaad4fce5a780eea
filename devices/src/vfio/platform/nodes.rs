//! The nodes of devices that one guest is given, made of the host's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use boot::fdt::host::{HostNode, HostTree, Reference};

use super::{InterruptHolder, PlatformError};
use crate::vfio::assign::AssignError;
use crate::vfio::host::{Bus, Host, HostDevice, InterruptEntry};
use crate::vfio::node::{HostDeviceNode, NodeBuilder, NodeOptions, PhandleMap};

/// The first SPI's INTID (Arm GIC Architecture Specification, IHI 0069, 2.2.1).
const FIRST_SPI: u64 = 32;

/// The guest's nodes of all these devices, in the making. Where one refers to another on the host,
/// it does in the guest.
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
            let (name, other) = (device.name().to_owned(), other.name().to_owned());
            return Err(PlatformError::SameNode { name, other });
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
        .map_err(|(name, source)| PlatformError::HostTree { name: name.to_owned(), source })?;
    let phandles = Arc::new(phandles);
    let builder = |given: &HostDeviceNode<'_>| {
        NodeBuilder::from_host(tree, &phandles, given)
            .map_err(|source| PlatformError::HostTree { name: given.name.to_owned(), source })
    };
    given.iter().map(builder).collect()
}

/// An interrupt of the host, by what identifies it: its controller's directory in the device tree,
/// and its cells there without their flags, but with its type where the controller has several
/// (Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Interrupt {
    controller: PathBuf,
    cells: Vec<u32>,
}

impl Interrupt {
    /// Those of a node; none where they can't be made out, as VFIO has none then.
    fn of(tree: &HostTree, node: &HostNode) -> Vec<Self> {
        let references = tree.interrupts(node).unwrap_or_default().into_iter();
        let identity = |Reference { provider, arguments: mut cells }: Reference| {
            cells.truncate(if cells.len() > 2 { 2 } else { 1 });
            Self { controller: provider.directory().to_owned(), cells }
        };
        references.map(identity).collect()
    }

    /// Its INTID, if it is an SPI of a GIC.
    fn intid(&self) -> Option<u64> {
        match self.cells.as_slice() {
            [0, number] => Some(u64::from(*number).saturating_add(FIRST_SPI)),
            _ => None,
        }
    }
}

/// Checks that VFIO can have each interrupt of the devices. It requests each for itself alone
/// (`vfio_set_trigger` in drivers/vfio/platform/vfio_platform_irq.c, without `IRQF_SHARED`): none can
/// be another's of the devices, on a node's list twice, or be requested by a driver of the host.
fn check_interrupts(
    host: &Host,
    tree: &HostTree,
    nodes: &[HostNode],
    devices: &[(&HostDevice, &NodeOptions)],
) -> Result<(), PlatformError> {
    let mut owners: BTreeMap<Interrupt, &HostDevice> = BTreeMap::new();
    for (node, (device, _)) in nodes.iter().zip(devices) {
        for interrupt in Interrupt::of(tree, node) {
            let Some(other) = owners.insert(interrupt.clone(), device) else { continue };
            let (name, interrupt) = (device.name().to_owned(), told(tree, &interrupt));
            return Err(if other == *device {
                PlatformError::RepeatedInterrupt { name, node: tree.path(node), interrupt }
            } else {
                let other = other.name().to_owned();
                PlatformError::SharedInterrupt { name, other, interrupt }
            });
        }
    }
    let by_intid: BTreeMap<u64, &Interrupt> =
        owners.keys().filter_map(|interrupt| Some((interrupt.intid()?, interrupt))).collect();
    if by_intid.is_empty() {
        return Ok(());
    }
    let table = host.interrupts();
    for entry in table.entries().filter(|entry| entry.controller.starts_with("GIC")) {
        let owned = by_intid.get(&entry.number).and_then(|i| Some((*i, *owners.get(*i)?)));
        let Some((interrupt, device)) = owned else { continue };
        // Until it is bound to VFIO, its own driver has it.
        let driver = device.driver().map_err(AssignError::Read)?;
        if driver.as_deref() == Some(device.bus().vfio_driver())
            && let Some(holder) = holder(host, tree, device, interrupt, &entry)
        {
            let (name, interrupt) = (device.name().to_owned(), told(tree, interrupt));
            return Err(PlatformError::HeldInterrupt { name, interrupt, holder });
        }
    }
    Ok(())
}

/// Who has requested an interrupt of `device`: another device of the host with the same interrupt,
/// or where there is none, the handler alone. Nobody if it is VFIO for this very device, which
/// another process has then.
#[cold]
fn holder(
    host: &Host,
    tree: &HostTree,
    device: &HostDevice,
    interrupt: &Interrupt,
    entry: &InterruptEntry<'_>,
) -> Option<InterruptHolder> {
    let handler = entry.handlers().next()?;
    // `vfio-irq[44](2c0a0000.dma)`, but with an AMBA device's peripheral ID for its name.
    let by_vfio = handler.starts_with("vfio-");
    if by_vfio && handler.ends_with(&format!("({})", device.name())) {
        return None;
    }
    let all = Bus::DESCRIBED.into_iter().flat_map(|bus| host.devices_on(bus));
    for other in all.filter(|other| other != device) {
        let Ok(Some(driver)) = other.driver() else { continue };
        let Ok(Some(node)) = other.of_node() else { continue };
        let Ok(node) = tree.node_alone(&node) else { continue };
        if (driver == other.bus().vfio_driver()) == by_vfio
            && Interrupt::of(tree, &node).contains(interrupt)
        {
            let device = other.name().to_owned();
            return Some(InterruptHolder::Device { device, driver, by_vfio });
        }
    }
    (!by_vfio).then(|| InterruptHolder::Handler(handler.to_owned()))
}

/// An interrupt as its controller's node numbers it.
fn told(tree: &HostTree, interrupt: &Interrupt) -> String {
    let cells: Vec<String> = interrupt.cells.iter().map(u32::to_string).collect();
    let controller = tree.node_alone(&interrupt.controller).map(|node| tree.path(&node));
    format!("{} of {}", cells.join(" "), controller.unwrap_or_default())
}

/// A device's node on the host.
pub(super) fn node_of(tree: &HostTree, device: &HostDevice) -> Result<HostNode, PlatformError> {
    let name = || device.name().to_owned();
    let directory = device.of_node().map_err(AssignError::Read)?;
    let directory = directory.ok_or_else(|| PlatformError::NoNode { name: name() })?;
    tree.node(&directory).map_err(|source| PlatformError::HostTree { name: name(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::testing::FakeHost;
    use boot::help::Help;

    /// Drafts of these devices of a host, by their names.
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
        assert!(matches!(error, PlatformError::SameNode { .. }), "{error}");
        let text = format!("{error}\n{}", error.help().unwrap());
        assert_eq!(text.matches("1.usb").count() + text.matches("xhci.1").count(), 4, "{text}");
        let error = builders_of(&fake, &["bare"]).unwrap_err();
        assert!(matches!(error, PlatformError::NoNode { .. }), "{error}");
    }
}
