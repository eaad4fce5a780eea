//! `/proc/interrupts` (Documentation/filesystems/proc.rst; `show_interrupts` in kernel/irq/proc.c).

use std::fs;

use super::Host;

/// The interrupts that the host has handlers for, or has counted.
#[derive(Debug, Default)]
pub struct InterruptTable(String);

/// An interrupt of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptEntry<'a> {
    /// Linux' number of it.
    pub irq: u32,
    /// How often it was handled, on all CPUs.
    pub count: u64,
    /// The name of its controller: `GICv3`, `ITS-MSI`, …
    pub controller: &'a str,
    /// Its number at the controller (`hwirq`), at a GIC its INTID.
    pub number: u64,
    /// The names of its handlers, with commas between them.
    handlers: &'a str,
}

impl Host {
    /// What `/proc/interrupts` has at the moment; nothing if it can't be read.
    pub fn interrupts(&self) -> InterruptTable {
        fs::read_to_string(self.proc.join("interrupts")).unwrap_or_default().into()
    }
}

impl From<String> for InterruptTable {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl InterruptTable {
    /// The entries. Inter-processor interrupts and errors, which have no number, are left out.
    pub fn entries(&self) -> impl Iterator<Item = InterruptEntry<'_>> {
        let mut lines = self.0.lines();
        let cpus = lines.next().map_or(0, |header| header.split_whitespace().count());
        lines.filter_map(move |line| InterruptEntry::parse(line, cpus))
    }
}

impl<'a> InterruptEntry<'a> {
    fn parse(line: &'a str, cpus: usize) -> Option<Self> {
        let (irq, mut rest) = line.split_once(':')?;
        let irq = irq.trim().parse().ok()?;
        let mut word = || {
            let (word, after) = rest.trim_start().split_once(char::is_whitespace)?;
            rest = after;
            Some(word)
        };
        let mut count = 0_u64;
        for _ in 0..cpus {
            count = count.saturating_add(word()?.parse().ok()?);
        }
        let (controller, number) = (word()?, word()?.parse().ok()?);
        let rest = rest.trim();
        let handlers = ["Level", "Edge"].iter().find_map(|sense| rest.strip_prefix(sense));
        let handlers = handlers.unwrap_or(rest).trim_start();
        Some(Self { irq, count, controller, number, handlers })
    }

    /// The names of its handlers, which their drivers chose.
    pub fn handlers(&self) -> impl Iterator<Item = &'a str> {
        self.handlers.split(", ").filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_counts_numbers_and_handlers() {
        let table = InterruptTable::from(
            "\
           CPU0       CPU1
 11:       2404       2296     GICv3  27 Level     arch_timer
 44:         10          3     GICv3 208 Level     vfio-irq[44](2c0a0000.dma)
 46:          1          0     GICv3 215 Edge      rtc alarm, 2c0d0000.dma
 47:          1          0     GICv3 216 Level
 51:          2          1  ITS-MSI 81921 Edge      vfio-msix[10](0000:00:05.0)
IPI0:       100        200       Rescheduling interrupts
Err:          0
"
            .to_owned(),
        );
        let entries: Vec<_> = table.entries().collect();
        let told: Vec<_> =
            entries.iter().map(|e| (e.irq, e.count, e.controller, e.number)).collect();
        let expected = [
            (11, 4700, "GICv3", 27),
            (44, 13, "GICv3", 208),
            (46, 1, "GICv3", 215),
            (47, 1, "GICv3", 216),
            (51, 3, "ITS-MSI", 81921),
        ];
        assert_eq!(told, expected);
        let handlers: Vec<Vec<_>> = entries.iter().map(|e| e.handlers().collect()).collect();
        let expected: [&[&str]; 5] = [
            &["arch_timer"],
            &["vfio-irq[44](2c0a0000.dma)"],
            &["rtc alarm", "2c0d0000.dma"],
            &[],
            &["vfio-msix[10](0000:00:05.0)"],
        ];
        assert_eq!(handlers, expected);
        for nonsense in ["", "CPU0\n", "CPU0 CPU1\n 3: 1 x\n", "CPU0\n:\n1:\n1: 1 GICv3 x Edge y"] {
            assert_eq!(InterruptTable::from(nonsense.to_owned()).entries().count(), 0);
        }
    }
}
