//! The registers of hardware breakpoints and watchpoints (Arm ARM, D2.8 and D2.10, D24.3).

/// `DBGBCR<n>_EL1`: enabled, at EL1 and EL0 (PMC), of a whole A64 instruction (BAS).
#[cfg(target_arch = "aarch64")]
pub(super) const BREAKPOINT_CONTROL: u64 = 1 | 0b11 << 1 | 0xf << 5;

/// Which accesses a watchpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads.
    Read,
    /// Stores.
    Write,
    /// Both.
    Any,
}

/// A place in virtual memory whose accesses stop a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// Its first byte.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Which accesses.
    pub access: Access,
}

impl Watchpoint {
    /// `DBGWVR<n>_EL1` and `DBGWCR<n>_EL1` for it; `None` if it is neither within 8 bytes that are aligned nor
    /// a power of two up to 2 GiB that is.
    pub fn registers(&self) -> Option<(u64, u64)> {
        let access: u64 = match self.access {
            Access::Read => 0b01,
            Access::Write => 0b10,
            Access::Any => 0b11,
        };
        // Enabled, at EL1 and EL0 (PAC), for these accesses (LSC).
        let control = 1 | 0b11 << 1 | access << 3;
        let offset = self.address & 7;
        if self.size == 0 {
            None
        } else if self.size.checked_add(offset)? <= 8 {
            // A bit for each byte (BAS).
            let bytes = (0xff_u64 >> (8 - self.size)) << offset;
            Some((self.address & !7, control | bytes << 5))
        } else {
            // The number of low bits that aren't looked at (MASK).
            let is_block = self.size.is_power_of_two() && self.address & (self.size - 1) == 0;
            let mask = u64::from(self.size.trailing_zeros());
            (is_block && mask <= 31).then_some((self.address, control | 0xff << 5 | mask << 24))
        }
    }

    /// How far this address is from it, in bytes. That of an access may lie before what it reaches.
    pub fn distance(&self, address: u64) -> u64 {
        let last = self.address.saturating_add(self.size.saturating_sub(1));
        self.address.saturating_sub(address).max(address.saturating_sub(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_blocks_are_watched() {
        let registers = |address, size, access| Watchpoint { address, size, access }.registers();
        assert_eq!(registers(0x1000, 8, Access::Any), Some((0x1000, 0x1fff)));
        assert_eq!(registers(0x1004, 4, Access::Write), Some((0x1000, 0x1e17)));
        assert_eq!(registers(0x1007, 1, Access::Read), Some((0x1000, 0x100f)));
        assert_eq!(registers(0x1000, 16, Access::Any), Some((0x1000, 0x400_1fff)));
        assert_eq!(registers(1 << 31, 1 << 31, Access::Any), Some((1 << 31, 0x1f00_1fff)));
        for (address, size) in
            [(0x1000, 0), (0x1004, 8), (0x1008, 16), (0x1000, 24), (0, 1 << 32), (7, u64::MAX)]
        {
            assert_eq!(registers(address, size, Access::Any), None, "{address:#x} {size}");
        }
    }

    #[test]
    fn the_nearest_one_is_found() {
        let watchpoint = Watchpoint { address: 0x1004, size: 4, access: Access::Any };
        for (address, distance) in [(0x1000, 4), (0x1004, 0), (0x1007, 0), (0x1008, 1)] {
            assert_eq!(watchpoint.distance(address), distance);
        }
    }
}
