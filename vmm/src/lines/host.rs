//! The host's side of a line: its number, how often it was handled, whether it is masked.

use std::collections::BTreeMap;
use std::fs;

use devices::vfio::host::{Host, InterruptEntry};

/// The first SPI at a GIC (Arm GIC Architecture Specification, IHI 0069, 2.2.1).
const FIRST_SPI: u32 = 32;

/// How VFIO calls the lines it has requested (`vfio_set_trigger`).
const VFIO: &str = "vfio-irq[";

/// What the host tells of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLine {
    /// How often it was handled, on all CPUs.
    pub count: u64,
    /// It is masked; `None` if the kernel doesn't tell.
    pub masked: Option<bool>,
}

/// The numbers at the host's GIC of a device's interrupts, by index, from its device tree node
/// (bindings/interrupt-controller/arm,gic-v3.yaml); nothing if they aren't all there.
#[cold]
pub fn numbers(host: &Host, device: &str) -> Vec<u32> {
    let node = host.find(device).ok().flatten().and_then(|device| device.of_node().ok().flatten());
    let cells = node.and_then(|node| fs::read(node.join("interrupts")).ok()).unwrap_or_default();
    spis(&cells)
}

/// The INTIDs in an `interrupts` property of three cells each: kind (0 for an SPI), number, flags.
fn spis(property: &[u8]) -> Vec<u32> {
    let (cells, cut_off) = property.as_chunks::<4>();
    let (interrupts, rest) = cells.as_chunks::<3>();
    let spi = |[kind, number, _]: &[[u8; 4]; 3]| {
        (u32::from_be_bytes(*kind) == 0)
            .then(|| u32::from_be_bytes(*number).checked_add(FIRST_SPI))
            .flatten()
    };
    // A line of another kind, or another controller's, would shift the others.
    if !rest.is_empty() || !cut_off.is_empty() {
        return Vec::new();
    }
    interrupts.iter().map(spi).collect::<Option<_>>().unwrap_or_default()
}

/// The lines that VFIO has requested, or has had requested, by their numbers at the GIC.
#[cold]
pub fn table() -> BTreeMap<u32, HostLine> {
    let masked =
        |irq: u32| depth(&fs::read_to_string(format!("/sys/kernel/debug/irq/irqs/{irq}")).ok()?);
    let table = Host::default().interrupts();
    let lines = table.entries().filter(|entry| entry.handlers().any(|name| name.starts_with(VFIO)));
    let line = |entry: InterruptEntry<'_>| {
        let line = HostLine { count: entry.count, masked: masked(entry.irq) };
        Some((u32::try_from(entry.number).ok()?, line))
    };
    lines.filter_map(line).collect()
}

/// Whether an interrupt is disabled, from the kernel's debugging file of it (`irq_debug_show`).
fn depth(text: &str) -> Option<bool> {
    let depth = text.lines().find_map(|line| line.strip_prefix("ddepth:"))?;
    Some(depth.trim().parse::<u32>().ok()? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_spis_are_counted_as_the_gic_does() {
        let cells = |cells: &[u32]| cells.iter().flat_map(|c| c.to_be_bytes()).collect::<Vec<_>>();
        assert_eq!(spis(&cells(&[0, 176, 4, 0, 177, 4])), [208, 209]);
        let cases: [&[u32]; 4] = [&[1, 9, 4], &[0, 176], &[0, u32::MAX, 4], &[]];
        for other in cases {
            assert!(spis(&cells(other)).is_empty(), "{other:?}");
        }
        assert!(spis(&[0; 13]).is_empty(), "a cell is cut off");
    }

    #[test]
    fn a_disabled_interrupt_is_masked() {
        let text = |depth| format!("status:   0x00000404\nddepth:   {depth}\nwdepth:   0\n");
        assert_eq!((depth(&text(0)), depth(&text(1))), (Some(false), Some(true)));
        assert_eq!(depth("handler: x\n"), None);
    }
}
