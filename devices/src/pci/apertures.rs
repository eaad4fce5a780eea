//! The host bridge's part of the guest's address space, and the BARs that it forwards to.

use std::ops::Range;

use super::address::Bdf;
use super::bars::{AddressSpace, BarRange};

/// What the parts are called in statistics and plans.
pub(super) const ECAM: &str = "PCI configuration";
pub(super) const MEMORY32: &str = "PCI memory";
pub(super) const MEMORY64: &str = "PCI 64-bit memory";
pub(super) const IO: &str = "PCI I/O";

/// The guest physical addresses that are the host bridge's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apertures {
    /// Configuration space: 1 MiB for each bus, from bus 0.
    pub ecam: Range<u64>,
    /// For 32-bit memory BARs.
    pub memory32: Range<u64>,
    /// For 64-bit memory BARs.
    pub memory64: Option<Range<u64>>,
    /// I/O ports, from 0: 64 KiB.
    pub io: Range<u64>,
}

impl Apertures {
    /// Those that there are (GPA), with their names.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Range<u64>)> {
        let all = [(ECAM, &self.ecam), (MEMORY32, &self.memory32), (IO, &self.io)];
        all.into_iter().chain(self.memory64.iter().map(|range| (MEMORY64, range)))
    }

    /// Whether the bridge may forward the accesses that a BAR decodes.
    pub(super) fn contain(&self, BarRange { space, range, .. }: &BarRange) -> bool {
        let within = |outer: &Range<u64>| outer.start <= range.start && range.end <= outer.end;
        match space {
            AddressSpace::Memory => {
                within(&self.memory32) || self.memory64.as_ref().is_some_and(within)
            }
            AddressSpace::Io => within(&(0..self.io.end.saturating_sub(self.io.start))),
        }
    }
}

/// The range of a function's BAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FunctionBar {
    /// The function, where the bridge has it.
    pub(super) function: Bdf,
    pub(super) bar: BarRange,
}

/// The `decoded` BARs that the bridge forwards: those within its apertures that overlap none that is
/// forwarded already. Those in `current` come first, so that no BAR takes another's place.
pub(super) fn arbitrate(
    apertures: &Apertures,
    decoded: &[FunctionBar],
    current: &[FunctionBar],
) -> Vec<FunctionBar> {
    let (old, new): (Vec<_>, Vec<_>) = decoded.iter().partition(|one| current.contains(one));
    let mut accepted: Vec<FunctionBar> = Vec::with_capacity(decoded.len());
    for one in old.into_iter().chain(new) {
        let free = accepted.iter().all(|other| !overlap(&other.bar, &one.bar));
        if free && apertures.contain(&one.bar) {
            accepted.push(one.clone());
        }
    }
    accepted
}

fn overlap(a: &BarRange, b: &BarRange) -> bool {
    a.space == b.space && a.range.start < b.range.end && b.range.start < a.range.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apertures() -> Apertures {
        Apertures {
            ecam: 0x3f80_0000..0x3f90_0000,
            memory32: 0x2000_0000..0x3f00_0000,
            memory64: Some(1 << 39..1 << 40),
            io: 0x3f00_0000..0x3f01_0000,
        }
    }

    fn memory(devfn: u8, start: u64, end: u64) -> FunctionBar {
        FunctionBar {
            function: Bdf::from_devfn(0, devfn),
            bar: BarRange { bar: 0, space: AddressSpace::Memory, range: start..end },
        }
    }

    fn io(devfn: u8, start: u64, end: u64) -> FunctionBar {
        FunctionBar {
            function: Bdf::from_devfn(0, devfn),
            bar: BarRange { bar: 1, space: AddressSpace::Io, range: start..end },
        }
    }

    #[test]
    fn only_bars_within_the_apertures_are_forwarded() {
        let apertures = apertures();
        for (decoded, forwarded) in [
            (memory(8, 0x2000_0000, 0x2000_1000), true),
            (memory(8, 0x3eff_f000, 0x3f00_0000), true),
            (memory(8, 1 << 39, 1 << 40), true),
            (io(8, 0, 0x20), true),
            (io(8, 0xffe0, 0x1_0000), true),
            // RAM, the interrupt controller, a platform device, ECAM, I/O as memory, nothing.
            (memory(8, 0x4000_0000, 0x4000_1000), false),
            (memory(8, 0x0800_0000, 0x0801_0000), false),
            (memory(8, 0x0c00_0000, 0x0c00_1000), false),
            (memory(8, 0x3f80_0000, 0x3f80_1000), false),
            (memory(8, 0x3f00_0000, 0x3f00_1000), false),
            (memory(8, 0, 0x1000), false),
            // Across an end.
            (memory(8, 0x1fff_f000, 0x2000_1000), false),
            (memory(8, 0x3eff_f000, 0x3f00_1000), false),
            (memory(8, 1 << 40, 1 << 41), false),
            (memory(8, 0, u64::MAX), false),
            (io(8, 0xffe0, 0x1_0001), false),
            (io(8, 0x2000_0000, 0x2000_0020), false),
        ] {
            let accepted = arbitrate(&apertures, std::slice::from_ref(&decoded), &[]);
            assert_eq!(accepted.len(), usize::from(forwarded), "{decoded:x?}");
        }
        let none = Apertures { memory64: None, ..apertures };
        assert!(!none.contain(&memory(8, 1 << 39, (1 << 39) + 0x1000).bar));
    }

    #[test]
    fn a_bar_that_is_forwarded_stays_and_others_wait() {
        let apertures = apertures();
        let one = memory(8, 0x2000_0000, 0x2000_2000);
        let over = memory(0, 0x2000_1000, 0x2000_3000);
        let beside = memory(16, 0x2000_2000, 0x2000_3000);
        // The same numbers, but ports.
        let port = io(8, 0x2000, 0x3000);
        let all = [over.clone(), one.clone(), beside.clone(), port.clone()];
        let current = [one.clone()];
        // Of new ones the first gets the addresses.
        assert_eq!(arbitrate(&apertures, &all, &[]), [over.clone(), port.clone()]);
        assert_eq!(arbitrate(&apertures, &all, &current), [one, beside, port.clone()]);
        // A BAR that is moved away makes room.
        let left = [over.clone(), port.clone()];
        assert_eq!(arbitrate(&apertures, &left, &current), [over, port]);
    }

    #[test]
    fn bars_of_one_function_can_not_overlap_either() {
        let one = memory(8, 0x2000_0000, 0x2000_2000);
        let mut other = one.clone();
        other.bar.bar = 6;
        assert_eq!(arbitrate(&apertures(), &[one.clone(), other], &[]), [one]);
    }
}
