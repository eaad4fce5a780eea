//! VFIO's drivers, and what vfio-platform wants to know of a device.

use std::fs;

use devices::vfio::host::{HostBus, HostDevice};
use devices::vfio::remedy;

use super::Premises;
use super::finding::Finding;
use super::kernel::{self, Presence};
use super::kind::{Kind, Present};
use crate::error::Error;

/// The VFIO drivers of the buses whose devices strait assigns.
pub fn findings(premises: &Premises, present: &Present) -> Vec<Finding> {
    let release = kernel::release(&premises.proc);
    let finding = |bus: HostBus| {
        let subject = bus.vfio_driver();
        let there = premises.host.has_vfio_driver(bus);
        let presence = Presence::of(there, &premises.modules, &release, subject);
        let help = kernel::help(presence, subject, bus.vfio_option());
        let kind = Kind::on(bus);
        let absence = match presence {
            Presence::There => return Finding::fine(subject, "there"),
            Presence::Loadable => "a module that isn't loaded",
            Presence::Absent => "not in the host's kernel",
        };
        if !present.kinds().contains(&kind) {
            return Finding::fine(subject, format!("{absence}, and no device needs it"));
        }
        let text = match present.count(kind) {
            0 => absence.to_owned(),
            count => format!("{absence}: {count} {} devices can't be assigned", kind.name()),
        };
        Finding::blocks(subject, &[kind], text, help)
    };
    HostBus::ALL.map(finding).into()
}

/// Whether vfio-platform takes devices for which the kernel has no reset function. vfio-amba never
/// asks for one (`vfio_amba_probe` in the kernel).
pub fn reset_required(premises: &Premises, present: &Present) -> Result<Finding, Error> {
    const SUBJECT: &str = "reset_required";
    match premises.host.flag("vfio_platform", "reset_required")? {
        Some(true) => {}
        Some(false) => return Ok(Finding::fine(SUBJECT, "off")),
        None => return Ok(Finding::fine(SUBJECT, "not known: vfio-platform isn't there")),
    }
    let resettable = Resettable::of(premises);
    let mut without = Vec::new();
    for device in present.devices(Kind::Platform) {
        if !resettable.has(device)? {
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
    Ok(if without.len() == present.count(Kind::Platform) {
        Finding::blocks(SUBJECT, &[Kind::Platform], text, remedy::RESET_REQUIRED)
    } else {
        Finding::degraded(SUBJECT, text, remedy::RESET_REQUIRED)
    })
}

/// The devices for which the kernel has reset functions: modules of which each says by its aliases,
/// `vfio-reset:COMPATIBLE`, what it is for (`drivers/vfio/platform/reset` in the kernel).
struct Resettable(Vec<String>);

impl Resettable {
    fn of(premises: &Premises) -> Self {
        let directory = premises.modules.join(kernel::release(&premises.proc));
        // Of modules, and of what is built in (`kmod(8)`, kbuild.rst).
        let files = ["modules.alias", "modules.builtin.modinfo"];
        let texts = files.map(|file| fs::read(directory.join(file)).unwrap_or_default());
        Self(texts.iter().flat_map(|text| aliases(text)).collect())
    }

    /// Whether there is one for this device, or VFIO's driver has taken it, which shows it.
    fn has(&self, device: &HostDevice) -> Result<bool, Error> {
        if device.is_with_vfio()? {
            return Ok(true);
        }
        Ok(device.compatible()?.iter().any(|name| self.0.contains(name)))
    }
}

/// The devices that such a file has reset functions for.
fn aliases(text: &[u8]) -> Vec<String> {
    let words = text.split(|byte| byte.is_ascii_whitespace() || matches!(byte, 0 | b'='));
    let named = words.filter_map(|word| word.strip_prefix(b"vfio-reset:"));
    named.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_functions_are_found_by_their_aliases() {
        let modules = b"alias vfio-reset:calxeda,hb-xgmac vfio_platform_calxedaxgmac\n\
                        alias of:N*T*Cx x\nalias vfio-reset:a b\n";
        assert_eq!(aliases(modules), ["calxeda,hb-xgmac", "a"]);
        let builtin = b"vfio.license=GPL\0vfio_platform_amdxgbe.alias=vfio-reset:amd,xgbe\0x.y=z\0";
        assert_eq!(aliases(builtin), ["amd,xgbe"]);
        assert!(aliases(b"").is_empty());
    }
}
