//! The PCI host of a guest that is given PCI functions.

use std::sync::Arc;

use arch::gic::{self, Gic, Version};
use arch::{Vm, layout};
use boot::fdt::Node;
use devices::bus::Bus;
use devices::gicv2m::{self, Frame};
use devices::irq::IrqLine;
use devices::pci::{self, Apertures, HostBridge, MsiController, Slot};

use crate::error::Error;
use crate::functions::Functions;
use crate::pci_slots::PlacedPort;
use crate::trace::Tracer;
use crate::virtio::VirtioDevices;

/// The host bridge's apertures; `end` is above everything else in the guest's address space (GPA). Each of the
/// root `ports` has a bus.
#[cold]
pub fn apertures(end: u64, ports: u8, vm: &Vm) -> Apertures {
    let memory64 = layout::pci_mmio64(end, vm.ipa_bits());
    if memory64.is_none() {
        log::info!("the guest has no room for a PCI window above 4 GiB");
    }
    let ecam = layout::pci_ecam(ports.saturating_add(1));
    Apertures { ecam, memory32: layout::PCI_MMIO32, memory64, io: layout::PCI_IO }
}

/// What takes the messages of PCI functions, if anything does: the ITS, or this frame.
pub fn messages(gic: &Gic, frame: Option<&Frame>) -> Option<MsiController<'static>> {
    let its = gic.has_its().then_some(MsiController::Its(gic::ITS_LABEL));
    its.or(frame.map(|_| MsiController::Gicv2m(gicv2m::LABEL)))
}

/// Why functions of a guest whose controller takes no messages have their interrupt pins only.
#[cold]
pub fn without_messages(gic: &Gic) -> String {
    let why = match gic.version() {
        Version::V2 => "with all of its interrupts in use, a GICv2 takes",
        Version::V3 => {
            "without an ITS (--gic 3,its=off, or this host's KVM lacks it), a GICv3 takes"
        }
    };
    format!(
        "{why} no message-signalled interrupts: PCI functions signal by their interrupt pins only"
    )
}

/// The slots of all functions, and of root ports.
pub fn slots(functions: &Functions, virtio: &VirtioDevices) -> Vec<Slot> {
    let assigned = functions.iter().flat_map(|function| {
        let port = function.port.as_ref().map(|port| port.slot);
        port.into_iter().chain([function.slot])
    });
    assigned.chain(virtio.iter().map(|device| device.slot)).collect()
}

/// The host bridge's node.
pub fn node(apertures: &Apertures, slots: &[Slot], messages: Option<MsiController<'_>>) -> Node {
    pci::host_node(apertures, slots.iter().copied(), gic::LABEL, messages)
}

/// Puts the host bridge with these functions on the bus, recorded by the `tracer` if there is one; root ports
/// interrupt by what `line` makes of an SPI. The GIC must be complete, and no interrupt armed.
///
/// # Errors
///
/// KVM refused, or something else has its addresses.
#[cold]
pub fn attach(
    apertures: Apertures,
    functions: &Functions,
    virtio: &VirtioDevices,
    gic: &Gic,
    bus: &mut Bus,
    tracer: Option<&Tracer>,
    line: &dyn Fn(u32) -> Box<dyn IrqLine>,
) -> Result<Arc<HostBridge>, Error> {
    let slots = slots(functions, virtio);
    let intx = slots.iter().filter_map(|slot| slot.intx);
    gic.set_level_sensitive(intx.map(|intx| intx.spi.0))?;
    let (mut on_bus_0, mut behind_ports) = (Vec::new(), Vec::new());
    for function in functions.iter() {
        let shared = function.shared();
        let shared = match tracer {
            Some(tracer) => tracer.trace_function(&function.name, shared),
            None => shared,
        };
        match &function.port {
            Some(PlacedPort { port, slot }) => {
                slot.intx.iter().for_each(|intx| port.connect(line(intx.spi.0)));
                behind_ports.push((port.clone(), shared));
            }
            None => on_bus_0.push((function.slot.bdf, shared)),
        }
    }
    on_bus_0.extend(virtio.iter().map(|device| (device.slot.bdf, device.shared())));
    let bridge = Arc::new(HostBridge::new(apertures, on_bus_0).with_ports(behind_ports));
    for (name, range, device) in bridge.devices() {
        bus.add(name, range, device)?;
    }
    Ok(bridge)
}
