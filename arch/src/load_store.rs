//! Loads and stores that a data abort's syndrome doesn't describe (ESR_ELx.ISS.ISV is 0; Arm ARM, D24.2.40):
//! pairs of registers, and those that write their base register back. Firmware and boot loaders make them to
//! devices; Linux doesn't.

/// A general-purpose register by its number in an instruction; 31 is SP as a base, and else XZR.
pub type Register = u32;

/// A load or store of one or two general-purpose registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadStore {
    /// What happens to the registers.
    pub kind: Kind,
    /// The bytes of each register in memory: 1, 2, 4 or 8.
    pub bytes: u32,
    /// The first register.
    pub first: Register,
    /// The second, which follows in memory.
    pub second: Option<Register>,
    /// The register that the address is made from.
    pub base: Register,
    /// What is added to the base for the address.
    pub offset: i64,
    /// What is added to the base afterwards.
    pub write_back: i64,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Registers to memory.
    Store,
    /// Memory to registers, which are filled up with zeroes.
    Load,
    /// Memory to registers, filled up with the sign to so many bits, 32 or 64, and with zeroes then.
    LoadSigned(u32),
}

impl LoadStore {
    /// Decodes an A64 instruction; `None` if it is something else, or what it does is unpredictable.
    pub fn decode(instruction: u32) -> Option<Self> {
        let decoded = match instruction >> 24 & 0b11_1111 {
            0b10_1000 | 0b10_1001 => pair(instruction),
            0b11_1000 => single(instruction),
            _ => None,
        };
        decoded.filter(Self::is_predictable)
    }

    /// Whether the architecture says what happens (Arm ARM, C6.2 "LDP", "LDR (immediate)": t == n with
    /// write-back, t == t2).
    fn is_predictable(&self) -> bool {
        let is_base = |register| register == self.base && register != 31;
        let written = [Some(self.first), self.second].into_iter().flatten().any(is_base);
        let loads_twice = self.kind != Kind::Store && self.second == Some(self.first);
        !(loads_twice || written && self.write_back != 0)
    }

    /// The registers, in the order of memory.
    pub fn registers(&self) -> impl Iterator<Item = Register> {
        [Some(self.first), self.second].into_iter().flatten()
    }

    /// What a register becomes by loading `value`, which has no more bits than are in memory.
    pub fn extended(&self, value: u64) -> u64 {
        let Kind::LoadSigned(bits) = self.kind else { return value };
        let unused = 64_u32.saturating_sub(self.bytes.saturating_mul(8));
        let signed = (value.wrapping_shl(unused)).cast_signed().wrapping_shr(unused);
        if bits == 32 {
            signed.cast_unsigned() & u64::from(u32::MAX)
        } else {
            signed.cast_unsigned()
        }
    }
}

/// Load/store pair (Arm ARM, C4.1 "Load/store register pair"): no-allocate, post-indexed, offset,
/// pre-indexed.
fn pair(instruction: u32) -> Option<LoadStore> {
    let is_load = bits(instruction, 22, 1) != 0;
    let (bytes, kind) = match (bits(instruction, 30, 2), is_load) {
        (0b00, false) => (4, Kind::Store),
        (0b00, true) => (4, Kind::Load),
        (0b01, true) => (4, Kind::LoadSigned(64)),
        (0b10, false) => (8, Kind::Store),
        (0b10, true) => (8, Kind::Load),
        _ => return None,
    };
    let by = signed(bits(instruction, 15, 7), 7).saturating_mul(bytes.into());
    let (offset, write_back) = match bits(instruction, 23, 2) {
        // There is no LDNPSW.
        0b00 if kind == Kind::LoadSigned(64) => return None,
        0b00 | 0b10 => (by, 0),
        0b01 => (0, by),
        _ => (by, by),
    };
    Some(LoadStore {
        kind,
        bytes,
        first: bits(instruction, 0, 5),
        second: Some(bits(instruction, 10, 5)),
        base: bits(instruction, 5, 5),
        offset,
        write_back,
    })
}

/// Load/store of one register, post-indexed or pre-indexed (Arm ARM, C4.1 "Load/store register (immediate
/// post-indexed)").
fn single(instruction: u32) -> Option<LoadStore> {
    let is_other_form = bits(instruction, 21, 1) != 0;
    let size = bits(instruction, 30, 2);
    let kind = match (bits(instruction, 22, 2), size) {
        (0b00, _) => Kind::Store,
        (0b01, _) => Kind::Load,
        (0b10, 0..=2) => Kind::LoadSigned(64),
        (0b11, 0..=1) => Kind::LoadSigned(32),
        _ => return None,
    };
    let by = signed(bits(instruction, 12, 9), 9);
    let (offset, write_back) = match bits(instruction, 10, 2) {
        0b01 => (0, by),
        0b11 => (by, by),
        _ => return None,
    };
    (!is_other_form).then_some(LoadStore {
        kind,
        bytes: 1 << size,
        first: bits(instruction, 0, 5),
        second: None,
        base: bits(instruction, 5, 5),
        offset,
        write_back,
    })
}

/// `count` bits from bit `from` on.
fn bits(instruction: u32, from: u32, count: u32) -> u32 {
    instruction >> from & ((1 << count) - 1)
}

/// The number that is in the lowest `count` bits.
fn signed(value: u32, count: u32) -> i64 {
    let unused = 32 - count;
    i64::from((value << unused).cast_signed() >> unused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(kind: Kind, bytes: u32, first: Register, base: Register) -> LoadStore {
        LoadStore { kind, bytes, first, second: None, base, offset: 0, write_back: 0 }
    }

    // The words were made by an assembler.
    #[test]
    fn instructions_are_what_an_assembler_was_told() {
        use Kind::{Load, LoadSigned, Store};
        let pair = |second, access| LoadStore { second: Some(second), ..access };
        let at = |offset, write_back, access| LoadStore { offset, write_back, ..access };
        for (word, expected) in [
            (0xb840_4420, at(0, 4, access(Load, 4, 0, 1))), // ldr w0, [x1], #4
            (0xf85f_8c20, at(-8, -8, access(Load, 8, 0, 1))), // ldr x0, [x1, #-8]!
            (0x3800_1443, at(0, 1, access(Store, 1, 3, 2))), // strb w3, [x2], #1
            (0x7800_2fff, at(2, 2, access(Store, 2, 31, 31))), // strh wzr, [sp, #2]!
            (0x3880_1420, at(0, 1, access(LoadSigned(64), 1, 0, 1))), // ldrsb x0, [x1], #1
            (0x78c0_2420, at(0, 2, access(LoadSigned(32), 2, 0, 1))), // ldrsh w0, [x1], #2
            (0xb880_4420, at(0, 4, access(LoadSigned(64), 4, 0, 1))), // ldrsw x0, [x1], #4
            (0xa940_0c22, pair(3, access(Load, 8, 2, 1))),  // ldp x2, x3, [x1]
            (0xa8c1_0c22, at(0, 16, pair(3, access(Load, 8, 2, 1)))), // ldp x2, x3, [x1], #16
            (0xa9bf_0c22, at(-16, -16, pair(3, access(Store, 8, 2, 1)))), // stp x2, x3, [x1, #-16]!
            (0x2901_0c22, at(8, 0, pair(3, access(Store, 4, 2, 1)))), // stp w2, w3, [x1, #8]
            (0x6940_0c22, pair(3, access(LoadSigned(64), 4, 2, 1))), // ldpsw x2, x3, [x1]
            (0xa840_0c22, pair(3, access(Load, 8, 2, 1))),  // ldnp x2, x3, [x1]
        ] {
            assert_eq!(LoadStore::decode(word), Some(expected), "{word:#x}");
        }
    }

    #[test]
    fn other_instructions_and_unpredictable_ones_are_not_decoded() {
        for word in [
            0xb940_0020, // ldr w0, [x1]
            0xf840_4020, // ldur x0, [x1, #4]
            0xf840_4820, // ldtr x0, [x1, #4]
            0xf862_6820, // ldr x0, [x1, x2]
            0x3cc1_0420, // ldr q0, [x1], #16
            0xad40_0420, // ldp q0, q1, [x1]
            0x6900_0c22, // stgp x2, x3, [x1]
            0x6840_0c22, // unallocated: ldnpsw
            0xf880_0420, // unallocated: 8 bytes with a sign
            0xb8c0_4420, // unallocated: 4 bytes with a sign to 32 bits
            0xb840_4421, // ldr w1, [x1], #4
            0xa8c1_0c23, // ldp x3, x3, [x1], #16
            0xa8c1_0421, // ldp x1, x1, [x1], #16
            0xf820_0020, // ldadd x0, x0, [x1]
            0xf83f_d020, // ld64b x0, [x1]
            0xf83f_9020, // st64b x0, [x1]
            0xd503_201f, // nop
            0,
            u32::MAX,
        ] {
            assert_eq!(LoadStore::decode(word), None, "{word:#x}");
        }
    }

    #[test]
    fn signs_are_extended_to_the_register() {
        let of = |kind, bytes, value| access(kind, bytes, 0, 1).extended(value);
        assert_eq!(of(Kind::Load, 1, 0x80), 0x80);
        assert_eq!(of(Kind::LoadSigned(64), 1, 0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(of(Kind::LoadSigned(32), 2, 0x8000), 0xffff_8000);
        assert_eq!(of(Kind::LoadSigned(64), 4, 0x7fff_ffff), 0x7fff_ffff);
    }

    #[test]
    fn every_word_is_decoded_or_not() {
        let mut word = 0x9e37_79b9_u32;
        for _ in 0..100_000 {
            word = word.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
            // Those of the group of loads and stores.
            let decoded = LoadStore::decode(word & !(0b0101 << 25) | 0b0100 << 25);
            assert!(decoded.is_none_or(|access| [1, 2, 4, 8].contains(&access.bytes)));
        }
    }
}
