//! Whether VFIO can have the interrupts of devices: it shares none.

use std::collections::BTreeMap;
use std::path::PathBuf;

use boot::fdt::host::{HostNode, HostTree, Reference};
use boot::order;

use super::{InterruptHolder, PlatformError};
use crate::irq::FIRST_SPI;
use crate::vfio::assign::AssignError;
use crate::vfio::host::{Host, HostBus, HostDevice, InterruptEntry};
use crate::vfio::node::NodeOptions;

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
            [0, number] => Some(u64::from(*number).saturating_add(FIRST_SPI.into())),
            _ => None,
        }
    }
}

/// Checks that VFIO can have each interrupt of the devices. It requests each for itself alone
/// (`vfio_set_trigger` in drivers/vfio/platform/vfio_platform_irq.c, without `IRQF_SHARED`): none can
/// be another's of the devices, on a node's list twice, or be requested by a driver of the host.
pub(super) fn check_interrupts(
    host: &Host,
    tree: &HostTree,
    nodes: &[HostNode],
    devices: &[(&HostDevice, &NodeOptions)],
) -> Result<(), PlatformError> {
    let mut owners: BTreeMap<Interrupt, &HostDevice> = BTreeMap::new();
    for (node, (device, _)) in nodes.iter().zip(devices) {
        for interrupt in Interrupt::of(tree, node) {
            let Some(other) = owners.insert(interrupt.clone(), device) else { continue };
            let (name, interrupt) = (device.name().to_owned(), describe(tree, &interrupt));
            return Err(if other == *device {
                PlatformError::RepeatedInterrupt { name, node: tree.path(node), interrupt }
            } else {
                let other = other.name().to_owned();
                PlatformError::SharedInterrupt { name, other, interrupt }
            });
        }
    }
    let by_intid =
        order::map(owners.keys().filter_map(|interrupt| Some((interrupt.intid()?, interrupt))));
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
            let (name, interrupt) = (device.name().to_owned(), describe(tree, interrupt));
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
    let all = HostBus::DESCRIBED.into_iter().flat_map(|bus| host.devices_on(bus));
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
fn describe(tree: &HostTree, interrupt: &Interrupt) -> String {
    let cells: Vec<String> = interrupt.cells.iter().map(u32::to_string).collect();
    let controller = tree.node_alone(&interrupt.controller).map(|node| tree.path(&node));
    format!("{} of {}", cells.join(" "), controller.unwrap_or_default())
}
