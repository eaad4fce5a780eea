//! VFIO's drivers, and what vfio-platform wants to know of a device.

use devices::vfio::host::HostBus;
use devices::vfio::remedy;

use super::System;
use super::finding::Finding;
use super::kind::{ConfinedDevices, Kind};
use crate::error::Error;

/// The VFIO drivers of the buses whose devices strait assigns.
pub fn findings(system: &System, confined: &ConfinedDevices) -> Vec<Finding> {
    let finding = |bus: HostBus| {
        let subject = bus.vfio_driver();
        if system.host.has_vfio_driver(bus) {
            return Finding::fine(subject, "there");
        }
        let kind = Kind::on(bus);
        let absence = if system.modules.has(subject) {
            "a module that isn't loaded"
        } else {
            "not in the host's kernel"
        };
        if !confined.kinds().contains(&kind) {
            return Finding::fine(subject, format!("{absence}, and no device needs it"));
        }
        let text = match confined.count(kind) {
            0 => absence.to_owned(),
            count => format!("{absence}: {count} {} devices can't be assigned", kind.name()),
        };
        let help = system.modules.remedy(subject, bus.vfio_option());
        Finding::blocks(subject, &[kind], text, help)
    };
    HostBus::ALL.map(finding).into()
}

/// Whether vfio-platform takes devices for which the kernel has no reset function. vfio-amba never
/// asks for one (`vfio_amba_probe` in the kernel).
pub fn reset_required(system: &System, confined: &ConfinedDevices) -> Result<Finding, Error> {
    const SUBJECT: &str = "reset_required";
    match system.host.flag("vfio_platform", "reset_required")? {
        Some(true) => {}
        Some(false) => return Ok(Finding::fine(SUBJECT, "off")),
        None => return Ok(Finding::fine(SUBJECT, "not known: vfio-platform isn't there")),
    }
    let resettable = system.modules.resettable();
    let mut without = Vec::new();
    for device in confined.devices(Kind::Platform) {
        // One that VFIO's driver has taken has a reset function.
        let mut names = device.compatible()?.into_iter();
        if !device.is_with_vfio()? && !names.any(|name| resettable.contains(&name)) {
            without.push(device.name());
        }
    }
    if without.is_empty() {
        return Ok(Finding::fine(SUBJECT, "on, and no device lacks a reset function"));
    }
    let text = format!(
        "on: vfio-platform refuses devices for which the kernel has no reset function: {}",
        without.join(", ")
    );
    Ok(if without.len() == confined.count(Kind::Platform) {
        Finding::blocks(SUBJECT, &[Kind::Platform], text, remedy::RESET_REQUIRED)
    } else {
        Finding::degraded(SUBJECT, text, remedy::RESET_REQUIRED)
    })
}
