//! Monitors assigned devices while the guest runs: their interrupts, and whether the guest uses them at
//! all.
//!
//! The guest's accesses to mapped registers reach the hardware, and nothing counts them. But a driver
//! enables an interrupt of its device, which the GIC shows, and the bus counts what traps. A PCI function
//! is enabled in its command register.

use std::sync::{Mutex, MutexGuard};

use devices::bus::Bus;
use devices::sync;

use crate::assigned::{AssignedDevice, AssignedDevices};
use crate::functions::Functions;
use crate::interrupts::{self, LineMonitor};

/// Watches assigned devices.
pub struct DeviceMonitor {
    /// The interrupt lines of platform and AMBA devices.
    pub lines: LineMonitor,
    /// The PCI functions.
    pub functions: Functions,
    /// Those that haven't been logged as unused yet.
    unused: Mutex<Vec<Device>>,
}

/// A device, and what is logged if the guest doesn't use it.
struct Device {
    name: String,
    /// Of a platform or AMBA device, its SPIs; `None` for a PCI function.
    spis: Option<Vec<u32>>,
    text: String,
}

impl DeviceMonitor {
    /// Watches these devices from now on; they must not be armed yet.
    pub fn of(assigned: &AssignedDevices) -> Self {
        let functions = assigned.functions.ids();
        let functions = functions.into_iter().map(|(name, ident)| Device::function(name, &ident));
        let devices = assigned.platform.iter().map(Device::of).chain(functions);
        Self {
            lines: LineMonitor::new(assigned.lines()),
            functions: assigned.functions.clone(),
            unused: Mutex::new(devices.collect()),
        }
    }

    /// Keeps open what is read while the guest runs: of the kernel's files that tell of the devices'
    /// interrupts, those for statistics only `with_statistics`. Their interrupts must be connected.
    pub fn keep_files(&self, with_statistics: bool) {
        if self.devices().is_empty() {
            return;
        }
        interrupts::keep_interrupt_table();
        if with_statistics {
            self.lines.keep_files();
        }
    }

    fn devices(&self) -> MutexGuard<'_, Vec<Device>> {
        sync::lock(&self.unused)
    }

    /// Logs those that the guest has not used so far, each once. `is_enabled` says whether the guest has
    /// an SPI enabled, if that is known.
    pub fn warn_of_unused(&self, bus: &Bus, is_enabled: impl Fn(u32) -> Option<bool>) {
        let mut devices = self.devices();
        for unused in devices.extract_if(.., |device| self.is_unused(device, bus, &is_enabled)) {
            log::warn!("{}", unused.text);
        }
    }

    fn is_unused(
        &self,
        Device { name, spis, .. }: &Device,
        bus: &Bus,
        is_enabled: impl Fn(u32) -> Option<bool>,
    ) -> bool {
        let Some(spis) = spis else { return !self.functions.has_been_enabled(name) };
        are_disabled(spis, is_enabled)
            && !bus.accesses().iter().any(|a| a.name == *name && (a.reads, a.writes) != (0, 0))
            && !self.lines.have_fired(name)
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
