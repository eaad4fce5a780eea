//! Assigned devices that the guest takes no notice of: what may be missing is told.
//!
//! The guest's accesses to mapped registers are its own, and nobody counts them. But a driver enables
//! an interrupt of its device, which the GIC tells, and what traps is counted by the bus. It turns a
//! PCI function on in its command register.

use std::sync::{Mutex, PoisonError};

use devices::bus::Bus;

use crate::assigned::{AssignedDevice, AssignedDevices};
use crate::functions::Watch;

/// The devices and functions of which it isn't told yet.
pub struct Unused(Mutex<Vec<Device>>);

/// A device, and what is told if the guest doesn't use it.
struct Device {
    name: String,
    /// Of a device, its SPIs; `None` for a PCI function.
    spis: Option<Vec<u32>>,
    text: String,
}

/// What is known of the use of devices.
pub struct Evidence<'a, E, F> {
    /// Accesses that trap.
    pub bus: &'a Bus,
    /// Whether the guest has an SPI enabled, if that is known.
    pub is_enabled: E,
    /// Whether a device has interrupted before.
    pub has_fired: F,
    /// The PCI functions.
    pub functions: &'a Watch,
}

impl Unused {
    /// Watches these devices.
    pub fn of(assigned: &AssignedDevices) -> Self {
        let functions = assigned.functions.ids();
        let functions = functions.into_iter().map(|(name, ident)| Device::function(name, &ident));
        Self(Mutex::new(assigned.platform.iter().map(Device::of).chain(functions).collect()))
    }

    /// Tells of those that have not been used so far, each once.
    #[cold]
    pub fn tell<E, F>(&self, evidence: &Evidence<'_, E, F>)
    where
        E: Fn(u32) -> Option<bool>,
        F: Fn(&str) -> bool,
    {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.is_empty() {
            return;
        }
        devices.retain(|device| {
            let unused = device.is_unused(evidence);
            if unused {
                log::warn!("{}", device.text);
            }
            !unused
        });
    }
}

impl Device {
    fn of(placed: &AssignedDevice) -> Self {
        let name = placed.name().to_owned();
        let driver = match placed.kernel_option() {
            Some(option) => format!("{}, {option}", placed.compatible()),
            None => placed.compatible(),
        };
        let text = format!(
            "{name}: the guest has no interrupt of it enabled. Does its kernel have a driver for it \
             ({driver})?"
        );
        Self { name, spis: Some(placed.irqs().map(|(spi, _)| spi.0).collect()), text }
    }

    fn function(name: String, ident: &str) -> Self {
        let text = format!(
            "{name}: the guest has never turned it on. Does its kernel have PCI (CONFIG_PCI_HOST_GENERIC) \
             and a driver for it ({ident})?"
        );
        Self { name, spis: None, text }
    }

    fn is_unused<E, F>(&self, evidence: &Evidence<'_, E, F>) -> bool
    where
        E: Fn(u32) -> Option<bool>,
        F: Fn(&str) -> bool,
    {
        let Some(spis) = &self.spis else {
            return !evidence.functions.has_been_enabled(&self.name);
        };
        are_disabled(spis, &evidence.is_enabled)
            && !evidence
                .bus
                .accesses()
                .iter()
                .any(|accesses| accesses.name == self.name && accesses.reads + accesses.writes > 0)
            && !(evidence.has_fired)(&self.name)
    }
}

/// Whether there are SPIs, and none is enabled. What isn't known is taken for enabled.
fn are_disabled(spis: &[u32], is_enabled: impl Fn(u32) -> Option<bool>) -> bool {
    !spis.is_empty() && spis.iter().all(|spi| is_enabled(*spi) == Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_enabled_or_unknown_interrupt_is_enough() {
        let of = |spi| match spi {
            0..8 => Some(false),
            8..16 => Some(true),
            _ => None,
        };
        assert!(are_disabled(&[0, 7], of));
        for spis in [vec![0, 8], vec![16, 0], vec![]] {
            assert!(!are_disabled(&spis, of), "{spis:?}");
        }
    }
}
