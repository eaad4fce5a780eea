//! What the kernel reports of an interrupt line: on the host its number, its count and whether it is
//! masked; at the guest's GIC, whether KVM asserts the SPI and whether the guest has it enabled.

use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;

use boot::order;
use devices::irq::FIRST_SPI;
use devices::vfio::host::{Host, InterruptEntry, InterruptTable};

use crate::kernel_files;

/// What VFIO's names of the lines that it has requested begin with (`vfio_set_trigger`).
const VFIO: &str = "vfio-irq[";

/// What the host reports of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLine {
    /// How often it was handled, on all CPUs.
    pub count: u64,
    /// It is masked; `None` if the kernel doesn't report it.
    pub masked: Option<bool>,
}

/// The numbers at the host's GIC of a device's interrupts, by index, from its device tree node
/// (bindings/interrupt-controller/arm,gic-v3.yaml); nothing if they aren't all there.
#[cold]
pub fn host_numbers(host: &Host, device: &str) -> Vec<u32> {
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

/// The host's table of interrupts.
const INTERRUPTS: &str = "/proc/interrupts";

/// What `/proc/interrupts` has at the moment; nothing if it can't be read.
#[cold]
pub fn interrupt_table() -> InterruptTable {
    kernel_files::read(INTERRUPTS).unwrap_or_default().into()
}

/// Keeps the host's table of interrupts open.
#[cold]
pub fn keep_interrupt_table() {
    kernel_files::keep(INTERRUPTS);
}

/// Keeps open what the kernel reports of lines.
#[cold]
pub fn keep_lines() {
    let table = interrupt_table();
    for entry in of_vfio(&table) {
        kernel_files::keep(&debugging_file(entry.irq));
    }
    if let Some(path) = vgic_state(std::process::id()) {
        kernel_files::keep(&path);
        let _ = VGIC_STATE.set(path);
    }
}

/// Where KVM reports the state of this process' vGIC, once that is kept open.
static VGIC_STATE: OnceLock<String> = OnceLock::new();

/// The kernel's debugging file of one of its interrupts.
fn debugging_file(irq: u32) -> String {
    format!("/sys/kernel/debug/irq/irqs/{irq}")
}

/// Those that VFIO has requested.
fn of_vfio(table: &InterruptTable) -> impl Iterator<Item = InterruptEntry<'_>> {
    table.entries().filter(|entry| entry.handlers().any(|name| name.starts_with(VFIO)))
}

/// The lines that VFIO has requested, by their INTIDs at the GIC.
#[cold]
pub fn host_lines() -> BTreeMap<u32, HostLine> {
    let masked = |irq: u32| is_disabled(&kernel_files::read(&debugging_file(irq)).ok()?);
    let table = interrupt_table();
    let lines = of_vfio(&table);
    let line = |entry: InterruptEntry<'_>| {
        let line = HostLine { count: entry.count, masked: masked(entry.irq) };
        Some((u32::try_from(entry.number).ok()?, line))
    };
    order::map(lines.filter_map(line))
}

/// Whether an interrupt is disabled, from the kernel's debugging file of it (`irq_debug_show`).
fn is_disabled(text: &str) -> Option<bool> {
    let depth = text.lines().find_map(|line| line.strip_prefix("ddepth:"))?;
    Some(depth.trim().parse::<u32>().ok()? > 0)
}

/// A SPI at the vGIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpiState {
    /// Its line is high.
    pub high: bool,
    /// The guest has it enabled.
    pub enabled: bool,
}

/// The SPIs at the vGIC of this process' VM, from KVM's debugging file; empty where there is none,
/// without permission, or before it is [kept open](keep_lines).
#[cold]
pub fn guest_spis() -> BTreeMap<u32, SpiState> {
    let text = VGIC_STATE.get().and_then(|path| kernel_files::read(path).ok());
    parse_vgic(&text.unwrap_or_default())
}

/// KVM's debugging file of the vGIC of a process' VM, if there is one.
fn vgic_state(pid: u32) -> Option<String> {
    let own = format!("{pid}-");
    let entries = fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten();
    let mut directories = entries.map(|entry| entry.path());
    let vm = directories.find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&own))
    })?;
    Some(vm.join("vgic-state").display().to_string())
}

/// Lines such as `SPI   96     0 0101010 …`; of the seven digits, the second is the line's level, the
/// fourth whether it is enabled (`print_irq_state`: pending latch, line level, active, enabled,
/// hardware, configuration, group).
fn parse_vgic(text: &str) -> BTreeMap<u32, SpiState> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|kind| *kind == "SPI")?;
        let spi = words.next()?.parse::<u32>().ok()?.checked_sub(FIRST_SPI)?;
        let flags = words.nth(1)?.as_bytes();
        let flag = |index: usize| flags.get(index).map(|digit| *digit == b'1');
        Some((spi, SpiState { high: flag(1)?, enabled: flag(3)? }))
    };
    order::map(text.lines().filter_map(line))
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
        assert_eq!((is_disabled(&text(0)), is_disabled(&text(1))), (Some(false), Some(true)));
        assert_eq!(is_disabled("handler: x\n"), None);
    }

    #[test]
    fn level_and_enable_are_the_second_and_the_fourth_flag() {
        let text = "\
Distributor
===========
vgic_model:\tGICv3
VCPU 0 TYP   ID TGT_ID PLAEHCG     HWID   TARGET SRC PRI VCPU_ID
----------------------------------------------------------------
       PPI   27      0 0101111       27        0  0 160      -1
SPI 0 TYP   ID TGT_ID PLAEHCG     HWID   TARGET SRC PRI VCPU_ID
       SPI   96      0 0101010        0        0  0 160      -1
       SPI   97      0 1010010        0        0  0 160       0
       SPI   98
";
        let expected = [
            (64, SpiState { high: true, enabled: true }),
            (65, SpiState { high: false, enabled: false }),
        ];
        assert_eq!(parse_vgic(text), expected.into());
        assert!(parse_vgic("").is_empty());
    }
}
