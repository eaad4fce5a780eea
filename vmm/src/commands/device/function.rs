//! What is known of a PCI function: what of it a guest gets, and what not.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use devices::pci::{Bar, ConfigSnapshot, ROM};
use devices::vfio::pci::capability::{self, Capability, CapabilityId};
use devices::vfio::pci::{BarInfo, PciFunction, PciOptions};
use devices::vfio::region::host_page_size;
use devices::vfio::uapi::DeviceCalls;
use serde::Serialize;

use crate::error::Error;

/// A function as a guest gets it.
#[derive(Debug, Serialize)]
pub struct FunctionSheet {
    capabilities: Vec<CapabilityLine>,
    bars: Vec<BarLine>,
    /// The interrupt pin, `A` to `D`.
    pin: Option<char>,
    /// How many messages MSI has at most; 0 without it.
    msi: u16,
    /// How many MSI-X has; 0 without it.
    msix: u16,
}

#[derive(Debug, Serialize)]
struct CapabilityLine {
    offset: u16,
    extended: bool,
    id: u16,
    name: &'static str,
    /// Why a guest doesn't get it.
    hidden: Option<&'static str>,
}

/// A base address register, or the ROM's.
#[derive(Debug, Serialize)]
pub struct BarLine {
    bar: u8,
    kind: &'static str,
    size: u64,
    prefetchable: bool,
    /// What of it is mapped into the guest, in bytes from its start; the rest traps.
    mapped: Vec<[u64; 2]>,
}

impl FunctionSheet {
    /// That of a function behind these calls. `hardware` is its configuration space as the kernel
    /// shows it, as far as it does.
    ///
    /// # Errors
    ///
    /// It can't be a guest's.
    pub fn of(calls: Arc<dyn DeviceCalls>, name: &str, hardware: Vec<u8>) -> Result<Self, Error> {
        // Nothing that a guest would change is changed: it is only looked at.
        let options = PciOptions { reset: false, ..PciOptions::default() };
        let function = PciFunction::open(calls, name, options, host_page_size())?;
        let mut sheet = Self::of_function(&function);
        for capability in capability::all(&ConfigSnapshot::new(hardware)) {
            sheet.add_hardware(CapabilityLine::of(&capability));
        }
        sheet.capabilities.sort_by_key(|line| (line.extended, line.offset));
        Ok(sheet)
    }

    /// That of a function that is open.
    pub fn of_function(function: &PciFunction) -> Self {
        let interrupts = function.interrupts();
        Self {
            capabilities: function.capabilities().iter().map(CapabilityLine::of).collect(),
            bars: function.bars().iter().map(BarLine::of).collect(),
            pin: function.pin().map(|pin| char::from(b'@'.saturating_add(pin.number()))),
            msi: interrupts.msi_capacity(),
            msix: interrupts.msix_capacity(),
        }
    }

    /// Adds a capability that the hardware has, if it isn't there.
    fn add_hardware(&mut self, line: CapabilityLine) {
        let there = |c: &CapabilityLine| (c.extended, c.offset) == (line.extended, line.offset);
        if !self.capabilities.iter().any(there) {
            let hidden = line.hidden.or(Some("the host's VFIO doesn't show it"));
            self.capabilities.push(CapabilityLine { hidden, ..line });
        }
    }
}

impl Display for FunctionSheet {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let line = self.pin.map(|pin| format!("INT{pin}"));
        let kinds = [(self.msi, "MSI"), (self.msix, "MSI-X")];
        let messages = kinds.iter().filter(|(count, _)| *count != 0);
        let messages = messages.map(|(count, name)| format!("{name} with {count} vectors"));
        let all: Vec<String> = line.into_iter().chain(messages).collect();
        let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        writeln!(f, "interrupts of a guest: {all}")?;
        self.bars.iter().try_for_each(|bar| writeln!(f, "{bar}"))?;
        for CapabilityLine { offset, name, hidden, id, .. } in &self.capabilities {
            let fate = hidden.map(|why| format!(", hidden: {why}")).unwrap_or_default();
            writeln!(f, "capability at {offset:#05x}: {name} ({id:#04x}){fate}")?;
        }
        Ok(())
    }
}

impl CapabilityLine {
    fn of(capability: &Capability) -> Self {
        let (extended, id) = match capability.id {
            CapabilityId::Standard(id) => (false, id.into()),
            CapabilityId::Extended(id) => (true, id),
        };
        let (offset, hidden) = (capability.offset, capability.hidden);
        Self { offset, extended, id, name: capability.id.name(), hidden }
    }
}

impl BarLine {
    /// That of a register.
    pub fn of(sheet: &BarInfo) -> Self {
        let (kind, prefetchable) = match sheet.kind {
            _ if sheet.bar == ROM => ("ROM", false),
            Bar::Io { .. } => ("I/O", false),
            Bar::Memory { is_64: true, prefetchable, .. } => ("64-bit memory", prefetchable),
            Bar::Memory { prefetchable, .. } => ("32-bit memory", prefetchable),
        };
        let mapped = sheet.mapped.iter().map(|area| [area.start, area.end]).collect();
        Self { bar: sheet.bar, kind, size: sheet.kind.size(), prefetchable, mapped }
    }
}

impl Display for BarLine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { bar, kind, size, prefetchable, mapped } = self;
        let name = if *bar == ROM { String::new() } else { format!("BAR {bar}: ") };
        let prefetchable = if *prefetchable { " prefetchable" } else { "" };
        write!(f, "{name}{kind}{prefetchable}, {size:#x} bytes, ")?;
        match mapped.as_slice() {
            [] => f.write_str("trapped"),
            [[0, end]] if end == size => f.write_str("mapped"),
            areas => {
                let areas: Vec<String> = areas
                    .iter()
                    .map(|[start, end]| format!("{start:#x}-{:#x}", end.saturating_sub(1)))
                    .collect();
                write!(f, "mapped at {}, else trapped", areas.join(" and "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_say_what_traps() {
        let bar = |bar, kind, mapped: &[[u64; 2]]| {
            let mapped = mapped.iter().map(|[start, end]| *start..*end).collect();
            BarLine::of(&BarInfo { bar, kind, mapped }).to_string()
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
