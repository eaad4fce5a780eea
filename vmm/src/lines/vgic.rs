//! KVM's side of a line: whether it asserts the SPI, and whether the guest has it enabled.

use std::collections::BTreeMap;
use std::fs;

/// The first SPI's INTID.
const FIRST_SPI: u32 = 32;

/// A SPI at the vGIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpiState {
    /// Its line is high.
    pub high: bool,
    /// The guest has it enabled.
    pub enabled: bool,
}

/// The SPIs at the vGIC of this process' VM, from KVM's debugging file; empty where there is none, or
/// without permission.
#[cold]
pub fn spis(pid: u32) -> BTreeMap<u32, SpiState> {
    let own = format!("{pid}-");
    let entries = fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten();
    let vm = entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&own)));
    let text = vm.and_then(|vm| fs::read_to_string(vm.join("vgic-state")).ok());
    parse(&text.unwrap_or_default())
}

/// Lines such as `SPI   96     0 0101010 …`; of the seven digits, the second is the line's level, the
/// fourth whether it is enabled (`print_irq_state`: pending latch, line level, active, enabled,
/// hardware, configuration, group).
fn parse(text: &str) -> BTreeMap<u32, SpiState> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|kind| *kind == "SPI")?;
        let spi = words.next()?.parse::<u32>().ok()?.checked_sub(FIRST_SPI)?;
        let flags = words.nth(1)?.as_bytes();
        let flag = |index: usize| flags.get(index).map(|digit| *digit == b'1');
        Some((spi, SpiState { high: flag(1)?, enabled: flag(3)? }))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(parse(text), expected.into());
        assert!(parse("").is_empty());
    }
}
