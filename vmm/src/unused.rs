//! Assigned devices that the guest takes no notice of: what may be missing is told.
//!
//! The guest's accesses to mapped registers are its own, and nobody counts them. But a driver enables
//! an interrupt of its device, which the GIC tells, and what traps is counted by the bus.

use std::sync::{Mutex, PoisonError};

use devices::bus::Bus;

use crate::assigned::{Assigned, Placed};

/// The devices of which it isn't told yet.
pub struct Unused(Mutex<Vec<Device>>);

/// A device, and what is told if the guest doesn't use it.
struct Device {
    name: String,
    spis: Vec<u32>,
    text: String,
}

impl Unused {
    /// Watches these devices.
    pub fn of(assigned: &Assigned) -> Self {
        Self(Mutex::new(assigned.devices().iter().map(Device::of).collect()))
    }

    /// Tells of those that have not been used so far, each once. `is_enabled` knows whether the
    /// guest has an SPI enabled, `has_fired` whether a device has interrupted before.
    #[cold]
    pub fn tell(
        &self,
        bus: &Bus,
        is_enabled: impl Fn(u32) -> Option<bool>,
        has_fired: impl Fn(&str) -> bool,
    ) {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.is_empty() {
            return;
        }
        let accesses = bus.accesses();
        devices.retain(|device| {
            let trapped = accesses.iter().any(|accesses| {
                accesses.name == device.name && accesses.reads + accesses.writes > 0
            });
            let unused =
                device.is_without_interrupts(&is_enabled) && !trapped && !has_fired(&device.name);
            if unused {
                log::warn!("{}", device.text);
            }
            !unused
        });
    }
}

impl Device {
    fn of(placed: &Placed) -> Self {
        let name = placed.name().to_owned();
        let driver = match placed.kernel_option() {
            Some(option) => format!("{}, {option}", placed.compatible()),
            None => placed.compatible(),
        };
        let text = format!(
            "{name}: the guest has no interrupt of it enabled. Does its kernel have a driver for it \
             ({driver})?"
        );
        Self { name, spis: placed.irqs().map(|(spi, _)| spi.0).collect(), text }
    }

    /// Whether it has interrupts, and none is enabled. What isn't known is taken for enabled.
    fn is_without_interrupts(&self, is_enabled: impl Fn(u32) -> Option<bool>) -> bool {
        !self.spis.is_empty() && self.spis.iter().all(|spi| is_enabled(*spi) == Some(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_enabled_or_unknown_interrupt_is_enough() {
        let device =
            |spis: &[u32]| Device { name: String::new(), spis: spis.to_vec(), text: String::new() };
        let of = |spi| match spi {
            0..8 => Some(false),
            8..16 => Some(true),
            _ => None,
        };
        assert!(device(&[0, 7]).is_without_interrupts(of));
        for spis in [vec![0, 8], vec![16, 0], vec![]] {
            assert!(!device(&spis).is_without_interrupts(of), "{spis:?}");
        }
    }
}
