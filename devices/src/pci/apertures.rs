//! What of the guest's address space leads to the host bridge, and what of it to which function.

use std::ops::Range;

use super::function::{Space, Window};

/// The guest physical addresses that are the host bridge's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apertures {
    /// Configuration space of bus 0: 1 MiB.
    pub ecam: Range<u64>,
    /// For registers of 32 address bits.
    pub memory32: Range<u64>,
    /// For registers of 64 address bits.
    pub memory64: Option<Range<u64>>,
    /// I/O ports, from 0: 64 KiB.
    pub io: Range<u64>,
}

impl Apertures {
    /// Whether the bridge may forward what a register decodes.
    pub(super) fn contain(&self, window: &Window) -> bool {
        let within =
            |outer: &Range<u64>| outer.start <= window.range.start && window.range.end <= outer.end;
        match window.space {
            Space::Memory => within(&self.memory32) || self.memory64.as_ref().is_some_and(within),
            Space::Io => within(&(0..self.io.end.saturating_sub(self.io.start))),
        }
    }
}

/// A window that a function decodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// The function, by its number on the bus.
    pub(super) devfn: u8,
    pub(super) window: Window,
}

/// Which of the windows `wanted` the bridge forwards: those within its apertures that overlap none
/// that it forwards already. Who is there stays there, as in `current`; a newcomer waits.
pub(super) fn arbitrate(
    apertures: &Apertures,
    wanted: &[Decoded],
    current: &[Decoded],
) -> Vec<Decoded> {
    let (stay, come): (Vec<_>, Vec<_>) = wanted.iter().partition(|one| current.contains(one));
    let mut accepted: Vec<Decoded> = Vec::with_capacity(wanted.len());
    for decoded in stay.into_iter().chain(come) {
        let free = accepted.iter().all(|other| !overlap(&other.window, &decoded.window));
        if free && apertures.contain(&decoded.window) {
            accepted.push(decoded.clone());
        }
    }
    accepted
}

fn overlap(a: &Window, b: &Window) -> bool {
    a.space == b.space && a.range.start < b.range.end && b.range.start < a.range.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apertures() -> Apertures {
        Apertures {
            ecam: 0x3f10_0000..0x3f20_0000,
            memory32: 0x2000_0000..0x3f00_0000,
            memory64: Some(1 << 39..1 << 40),
            io: 0x3f00_0000..0x3f01_0000,
        }
    }

    fn memory(devfn: u8, start: u64, end: u64) -> Decoded {
        Decoded { devfn, window: Window { bar: 0, space: Space::Memory, range: start..end } }
    }

    fn io(devfn: u8, start: u64, end: u64) -> Decoded {
        Decoded { devfn, window: Window { bar: 1, space: Space::Io, range: start..end } }
    }

    #[test]
    fn only_what_lies_within_the_apertures_is_forwarded() {
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
            (memory(8, 0x3f10_0000, 0x3f10_1000), false),
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
        assert!(!none.contain(&memory(8, 1 << 39, (1 << 39) + 0x1000).window));
    }

    #[test]
    fn who_is_there_stays_and_a_newcomer_waits() {
        let apertures = apertures();
        let one = memory(8, 0x2000_0000, 0x2000_2000);
        let over = memory(0, 0x2000_1000, 0x2000_3000);
        let beside = memory(16, 0x2000_2000, 0x2000_3000);
        // The same numbers, but ports.
        let port = io(8, 0x2000, 0x3000);
        let all = [over.clone(), one.clone(), beside.clone(), port.clone()];
        let current = [one.clone()];
        // The newcomer that comes first gets what is free: the one before all the others.
        assert_eq!(arbitrate(&apertures, &all, &[]), [over.clone(), port.clone()]);
        assert_eq!(arbitrate(&apertures, &all, &current), [one, beside, port.clone()]);
        // Who leaves makes room.
        let left = [over.clone(), port.clone()];
        assert_eq!(arbitrate(&apertures, &left, &current), [over, port]);
    }

    #[test]
    fn registers_of_one_function_can_not_overlap_either() {
        let one = memory(8, 0x2000_0000, 0x2000_2000);
        let mut other = one.clone();
        other.window.bar = 6;
        assert_eq!(arbitrate(&apertures(), &[one.clone(), other], &[]), [one]);
    }
}
