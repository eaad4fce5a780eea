//! The guest's stage 1 translation, as its MMU does it (Arm ARM, D8 "The AArch64 Virtual Memory System
//! Architecture"): virtual address → GPA. Addresses have 48 bits at most; permissions aren't looked at.

/// The system registers that say how a vCPU translates at EL1 and EL0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
}

/// SCTLR_EL1.M: stage 1 is on.
const SCTLR_M: u64 = 1 << 0;
/// SCTLR_EL1.EE: tables are big-endian.
const SCTLR_EE: u64 = 1 << 25;

/// A descriptor is valid.
const VALID: u64 = 1 << 0;
/// A descriptor is of a table, or in the last level of a page.
const TABLE: u64 = 1 << 1;
/// Where descriptors have addresses, but for the bits that are offsets (Arm ARM, D8.3).
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// The last level.
const LAST: u32 = 3;

/// What one of the two halves of the address space is translated with.
struct Half {
    /// The GPA of its first table.
    table: u64,
    /// The number of bits of its virtual addresses.
    bits: u32,
    /// The number of bits of an offset in a page: 12, 14 or 16.
    page: u32,
}

impl Translation {
    /// The GPA of a virtual address; `None` if there is none. `read` returns the 8 bytes at a GPA, as a
    /// little-endian number.
    pub fn gpa(&self, address: u64, read: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        if self.sctlr & SCTLR_M == 0 {
            return Some(address);
        }
        if self.sctlr & SCTLR_EE != 0 {
            return None;
        }
        self.half(address)?.walk(address, read)
    }

    /// The half in which an address is, if translation reaches it (Arm ARM, D24.2.189 TCR_EL1).
    fn half(&self, address: u64) -> Option<Half> {
        let is_upper = address >> 55 & 1 != 0;
        let (shift, table) = if is_upper { (16, self.ttbr1) } else { (0, self.ttbr0) };
        let (size, is_disabled) = (self.tcr >> shift & 0x3f, self.tcr >> shift >> 7 & 1 != 0);
        let page = match (is_upper, self.tcr >> shift >> 14 & 3) {
            (false, 0b00) | (true, 0b10) => 12,
            (false, 0b10) | (true, 0b01) => 14,
            (false, 0b01) | (true, 0b11) => 16,
            _ => return None,
        };
        let bits = 64_u32.checked_sub(u32::try_from(size).ok()?)?;
        // The top byte may be a tag (TBI0, TBI1).
        let ignores_top = self.tcr >> (37 + u64::from(is_upper)) & 1 != 0;
        let top = if ignores_top { 56 } else { 64 };
        let above = address << (64 - top) >> (64 - top) >> bits.min(63);
        let ones = if is_upper { u64::MAX << (64 - top) >> (64 - top) >> bits.min(63) } else { 0 };
        let is_reached = !is_disabled && above == ones && (page..=48).contains(&bits);
        is_reached.then_some(Half { table: table & ADDRESS, bits, page })
    }
}

impl Half {
    /// Walks the tables.
    fn walk(&self, address: u64, mut read: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        // A table fills a page with descriptors of 8 bytes.
        let stride = self.page - 3;
        let levels = (self.bits - self.page).div_ceil(stride).max(1);
        let mut level = (LAST + 1).checked_sub(levels)?;
        let mut table = self.table;
        // The first table may be smaller.
        let mut width = self.bits - self.page - stride * (levels - 1);
        loop {
            let offset_bits = self.page + stride * (LAST - level);
            let index = address >> offset_bits & mask(width);
            let descriptor = read(table.checked_add(index * 8)?)?;
            let is_table = descriptor & TABLE != 0;
            if descriptor & VALID == 0 || (level == LAST && !is_table) {
                return None;
            }
            if level == LAST || !is_table {
                return Some(
                    descriptor & ADDRESS & !mask(offset_bits) | address & mask(offset_bits),
                );
            }
            (table, level, width) = (descriptor & ADDRESS & !mask(self.page), level + 1, stride);
        }
    }
}

/// The lowest `bits` bits.
fn mask(bits: u32) -> u64 {
    1_u64.checked_shl(bits).unwrap_or(0).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Tables in memory, by GPA.
    type Memory = HashMap<u64, u64>;

    fn gpa(translation: &Translation, memory: &Memory, address: u64) -> Option<u64> {
        translation.gpa(address, |gpa| memory.get(&gpa).copied())
    }

    const ON: Translation = Translation { sctlr: 1, tcr: 0, ttbr0: 0x1000, ttbr1: 0x2000 };

    #[test]
    fn without_an_mmu_an_address_is_itself() {
        let off = Translation::default();
        assert_eq!(gpa(&off, &Memory::new(), 0x4008_0000), Some(0x4008_0000));
    }

    #[test]
    fn linux_s_kernel_is_in_the_upper_half() {
        // 48 bits of 4 KiB pages in both halves.
        let linux = Translation { tcr: 16 | 16 << 16 | 0b10 << 30, ..ON };
        let address = 0xffff_8000_8012_3456;
        let memory = Memory::from([
            (0x2000 + 256 * 8, 0x3000 | 3),
            (0x3000 + 2 * 8, 0x4000 | 3),
            // A block of 2 MiB, with attributes.
            (0x4000, 0x0060_0000_4020_0000 | 0x701),
        ]);
        assert_eq!(gpa(&linux, &memory, address), Some(0x4032_3456));
        assert_eq!(gpa(&linux, &memory, address & !(1 << 55)), None, "no canonical address");
        assert_eq!(gpa(&linux, &memory, 0xffff_8000_c000_0000), None, "nothing mapped");
        let closed = Translation { tcr: linux.tcr | 1 << 23, ..linux };
        assert_eq!(gpa(&closed, &memory, address), None, "EPD1");
        let big = Translation { sctlr: 1 | 1 << 25, ..linux };
        assert_eq!(gpa(&big, &memory, address), None, "big-endian tables");
    }

    #[test]
    fn pages_and_tags_are_found_with_each_granule() {
        for (granule, page, bits) in [(0b00, 12, 39), (0b10, 14, 36), (0b01, 16, 42)] {
            let tcr = (64 - bits) | granule << 14 | 1 << 37;
            let translation = Translation { tcr, ..ON };
            let (last, data) = (0x10_0000, 0x4000_0000);
            // All first entries of two or three levels.
            let mut memory = Memory::from([(0x1000, 0x8_0000 | 3), (0x8_0000, last | 3)]);
            let levels = (bits - page + page - 4) / (page - 3);
            if levels == 2 {
                memory.insert(0x1000, last | 3);
            }
            memory.insert(last + 8, data | 3);
            let address = 1 << page | 0x9ab;
            assert_eq!(gpa(&translation, &memory, address), Some(data | 0x9ab), "{page}");
            assert_eq!(gpa(&translation, &memory, address | 0x5a << 56), Some(data | 0x9ab));
            assert_eq!(gpa(&translation, &memory, address | 1 << bits), None, "{page}");
            memory.insert(last + 8, data | 1);
            assert_eq!(gpa(&translation, &memory, address), None, "reserved: {page}");
        }
    }

    #[test]
    fn any_registers_and_tables_are_walked_to_an_end() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut found = 0;
        for _ in 0..100_000 {
            let translation =
                Translation { sctlr: 1, tcr: next() & !0x2020, ttbr0: next(), ttbr1: next() };
            let address = if next() & 1 == 0 { next() >> 40 } else { next() | u64::MAX << 24 };
            let mut reads = 0;
            let answer = translation.gpa(address, |_| {
                reads += 1;
                Some(next() | 3)
            });
            assert!(reads <= 4);
            found += u32::from(answer.is_some());
        }
        assert!(found > 1000, "{found}");
    }
}
