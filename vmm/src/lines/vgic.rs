//! KVM's side of a line: whether it asserts the SPI.

use std::collections::BTreeMap;
use std::fs;

/// The first SPI's INTID.
const FIRST_SPI: u32 = 32;

/// Which SPIs the vGIC of this process' VM has asserted, by SPI, from KVM's debugging file; empty
/// where there is none, or without permission.
#[cold]
pub fn levels(pid: u32) -> BTreeMap<u32, bool> {
    let own = format!("{pid}-");
    let entries = fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten();
    let vm = entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&own)));
    let text = vm.and_then(|vm| fs::read_to_string(vm.join("vgic-state")).ok());
    parse(&text.unwrap_or_default())
}

/// Lines such as `SPI   96     0 0101010 …`; the second of the seven digits is the line's level
/// (`print_irq_state`: pending latch, line level, active, enabled, hardware, configuration, group).
fn parse(text: &str) -> BTreeMap<u32, bool> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|kind| *kind == "SPI")?;
        let spi = words.next()?.parse::<u32>().ok()?.checked_sub(FIRST_SPI)?;
        let flags = words.nth(1)?.as_bytes();
        Some((spi, *flags.get(1)? == b'1'))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_flag_is_the_level() {
        let text = "\
Distributor
===========
vgic_model:\tGICv3
VCPU 0 TYP   ID TGT_ID PLAEHCG     HWID   TARGET SRC PRI VCPU_ID
----------------------------------------------------------------
       PPI   27      0 0101111       27        0  0 160      -1
SPI 0 TYP   ID TGT_ID PLAEHCG     HWID   TARGET SRC PRI VCPU_ID
       SPI   96      0 0101010        0        0  0 160      -1
       SPI   97      0 1011010        0        0  0 160       0
       SPI   98
";
        assert_eq!(parse(text), [(64, true), (65, false)].into());
        assert!(parse("").is_empty());
    }
}
