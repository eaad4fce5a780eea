//! What is known of a PCI function: what of it a guest gets, and what not.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use boot::order;
use devices::extent::Extent;
use devices::pci::{Bar, ConfigSnapshot, ROM};
use devices::vfio::pci::capability::{self, Capability};
use devices::vfio::pci::{BarInfo, PciFunction, PciOptions};
use devices::vfio::region::host_page_size;
use devices::vfio::uapi::DeviceCalls;
use serde::Serialize;

use crate::error::Error;

/// A function as a guest gets it.
#[derive(Debug, Serialize)]
pub struct FunctionDetails {
    capabilities: Vec<Capability>,
    bars: Vec<BarInfo>,
    /// The interrupt pin, `A` to `D`.
    pin: Option<char>,
    /// The most vectors of MSI; 0 without it.
    msi: u16,
    /// The vectors of MSI-X; 0 without it.
    msix: u16,
    /// The functions that are reset with it, if it is reset with its bus.
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_with: Option<Vec<String>>,
    /// Why it is reset neither alone nor with its bus, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_reset: Option<String>,
}

impl FunctionDetails {
    /// Those of a function behind these calls. `hardware` is its configuration space as the kernel
    /// shows it, as far as it does.
    ///
    /// # Errors
    ///
    /// No guest can have it.
    pub fn of(calls: Arc<dyn DeviceCalls>, name: &str, hardware: Vec<u8>) -> Result<Self, Error> {
        // What is shown needs no reset.
        let options = PciOptions { reset: false, ..PciOptions::default() };
        let function = PciFunction::open(calls, name, options, host_page_size())?;
        let mut details = Self::of_function(&function);
        for capability in capability::all(&ConfigSnapshot::new(hardware)) {
            let mut shown = details.capabilities.iter();
            if !shown.any(|shown| shown.offset == capability.offset) {
                let hidden = capability.hidden.or(Some("the host's VFIO doesn't show it"));
                details.capabilities.push(Capability { hidden, ..capability });
            }
        }
        order::sort_by_key(&mut details.capabilities, |capability| capability.offset);
        Ok(details)
    }

    /// Those of a function that is open.
    pub fn of_function(function: &PciFunction) -> Self {
        let interrupts = function.interrupts();
        let mut capabilities = function.capabilities().to_vec();
        order::sort_by_key(&mut capabilities, |capability| capability.offset);
        Self {
            capabilities,
            bars: function.bars(),
            pin: function.pin().map(|pin| char::from(b'@'.saturating_add(pin.number()))),
            msi: interrupts.msi_capacity(),
            msix: interrupts.msix_capacity(),
            reset_with: function.reset_with().map(<[String]>::to_vec),
            not_reset: function.obstacle_to_bus_reset().map(str::to_owned),
        }
    }
}

impl Display for FunctionDetails {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let pin = self.pin.map(|pin| format!("INT{pin}"));
        let messages = [(self.msi, "MSI"), (self.msix, "MSI-X")].into_iter();
        let messages = messages.filter(|(count, _)| *count != 0).map(|(count, name)| match count {
            1 => format!("{name} with 1 vector"),
            _ => format!("{name} with {count} vectors"),
        });
        let all: Vec<String> = pin.into_iter().chain(messages).collect();
        let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        writeln!(f, "interrupts of a guest: {all}")?;
        match self.reset_with.as_deref() {
            None => {}
            Some([]) => writeln!(f, "reset with its bus")?,
            Some(others) => writeln!(f, "reset with its bus, and so with {}", others.join(", "))?,
        }
        self.not_reset.iter().try_for_each(|why| writeln!(f, "not reset: {why}"))?;
        self.bars.iter().try_for_each(|bar| writeln!(f, "{}", bar_text(bar)))?;
        for Capability { id, offset, hidden } in &self.capabilities {
            write!(f, "capability at {offset:#05x}: {} ({:#04x})", id.name(), id.number())?;
            hidden.iter().try_for_each(|why| write!(f, ", hidden: {why}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A BAR in words.
fn bar_text(BarInfo { bar, kind, mapped }: &BarInfo) -> String {
    let name = if *bar == ROM { String::new() } else { format!("BAR {bar}: ") };
    let what = match kind {
        _ if *bar == ROM => "ROM",
        Bar::Io { .. } => "I/O",
        Bar::Memory { is_64: true, prefetchable: true, .. } => "64-bit memory prefetchable",
        Bar::Memory { is_64: true, .. } => "64-bit memory",
        Bar::Memory { prefetchable: true, .. } => "32-bit memory prefetchable",
        Bar::Memory { .. } => "32-bit memory",
    };
    let size = kind.size();
    let access = match mapped.as_slice() {
        [] => "trapped".to_owned(),
        [Extent { start: 0, size: all }] if *all == size => "mapped".to_owned(),
        parts => {
            let parts: Vec<_> = parts.iter().map(Extent::to_string).collect();
            format!("mapped at {}, else trapped", parts.join(" and "))
        }
    };
    format!("{name}{what}, {size:#x} bytes, {access}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_say_what_traps() {
        let bar = |bar, kind, mapped: &[[u64; 2]]| {
            let mapped = mapped.iter().map(|[start, end]| Extent::from(&(*start..*end))).collect();
            bar_text(&BarInfo { bar, kind, mapped })
        };
        let memory = |wide| Bar::Memory { size: 0x4000, is_64: wide, prefetchable: wide };
        for (line, expected) in [
            (
                bar(0, memory(true), &[[0, 0x2000], [0x3000, 0x4000]]),
                "BAR 0: 64-bit memory prefetchable, 0x4000 bytes, mapped at 0x0-0x1fff and \
                 0x3000-0x3fff, else trapped",
            ),
            (bar(1, memory(false), &[[0, 0x4000]]), "BAR 1: 32-bit memory, 0x4000 bytes, mapped"),
            (bar(2, Bar::Io { size: 0x20 }, &[]), "BAR 2: I/O, 0x20 bytes, trapped"),
            (bar(6, memory(false), &[]), "ROM, 0x4000 bytes, trapped"),
        ] {
            assert_eq!(line, expected);
        }
    }
}
