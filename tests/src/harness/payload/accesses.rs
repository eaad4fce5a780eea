//! Accesses that a guest's CPU makes to Normal memory alone, to Device memory it faults: misaligned
//! ones, and so all that lie across the end of a device (Arm ARM, B2.15).

use super::{
    HEADER, ISB, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, branch_if_equal, call, compare, distance,
    image_with, load, read_system, write_system,
};

/// An access by one instruction, of 1, 2, 4 or 8 bytes, to a guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load that is to find this number.
    Read {
        /// Where.
        address: u32,
        /// How many bytes.
        bytes: u32,
        /// What is to be there.
        expected: u32,
    },
    /// A store of ones.
    Write {
        /// Where.
        address: u32,
        /// How many bytes.
        bytes: u32,
    },
}

/// Makes these accesses one after another, with all of the first 4 GiB mapped as Normal memory, then
/// powers off. If a load finds something else it resets the machine instead.
pub fn access_as_memory(accesses: &[Access]) -> Vec<u8> {
    let mut body = Vec::new();
    for access in accesses {
        match *access {
            Access::Read { address, bytes, expected } => {
                let failure = call(PSCI_SYSTEM_RESET);
                body.extend(load(2, address));
                body.push(LOAD | size(bytes));
                body.extend(load(4, expected));
                body.extend([COMPARE, branch_if_equal(distance(failure.len()) + 1)]);
                body.extend(failure);
            }
            Access::Write { address, bytes } => {
                body.extend(load(2, address));
                body.extend([ONES, STORE | size(bytes)]);
            }
        }
    }
    mapped_as_memory(body)
}

/// Writes `ab` and a newline to a PL011 at this guest physical address and reads of its identification, by
/// instructions of which KVM can't tell what they transfer, with the MMU on or off; then powers off. If a
/// register isn't what it should be it resets the machine instead.
pub fn access_with_write_back(pl011: u32, mmu: bool) -> Vec<u8> {
    let is = |register, number| {
        let failure = call(PSCI_SYSTEM_RESET);
        let check = [compare(register, 7), branch_if_equal(distance(failure.len()) + 1)];
        [&load(7, number)[..], &check, &failure].concat()
    };
    let mut body = Vec::new();
    body.extend(load(2, pl011 - 8));
    for (byte, store) in [
        (b'a', 0x3800_8c41),  // strb w1, [x2, #8]!
        (b'b', 0x3800_4441),  // strb w1, [x2], #4
        (b'\n', 0x293f_fc41), // stp w1, wzr, [x2, #-4]
    ] {
        body.extend(load(1, byte.into()));
        body.push(store);
    }
    body.extend(is(2, pl011 + 4));
    body.extend(load(2, pl011 + 0xfe0));
    body.extend([
        0x28c1_1043, // ldp w3, w4, [x2], #8
        0x389f_8446, // ldrsb x6, [x2], #-8
    ]);
    for (register, number) in [(3, 0x11), (4, 0x10), (6, 0x34), (2, pl011 + 0xfe0)] {
        body.extend(is(register, number));
    }
    body.extend([
        0x9100_005f, // mov sp, x2
        0xb841_07e3, // ldr w3, [sp], #16
        0x9100_03e8, // mov x8, sp
    ]);
    body.extend([is(3, 0x11), is(8, pl011 + 0xff0)].concat());
    if mmu {
        return mapped_as_memory(body);
    }
    body.extend(call(PSCI_SYSTEM_OFF));
    image_with(&body, &[])
}

/// A payload that does this with all of the first 4 GiB mapped as Normal memory, then powers off.
fn mapped_as_memory(mut body: Vec<u32>) -> Vec<u8> {
    body.extend(call(PSCI_SYSTEM_OFF));
    let length = HEADER + 4 * (map_as_memory(0).len() + body.len());
    let table_at = length.next_multiple_of(PAGE);
    let code = [map_as_memory(table_at - HEADER), body].concat();
    image_with(&code, &table())
}

/// The size of a page, and of a table, in bytes.
const PAGE: usize = 4096;

/// A level 1 table of the 4 KiB granule: each of its first four entries maps 1 GiB to itself, as
/// Normal memory (Arm ARM, D8.3: valid, a block, attributes number 0, accessed).
fn table() -> Vec<u8> {
    let block = |index: u64| if index < 4 { index << 30 | 1 << 10 | 1 } else { 0 };
    (0..512).flat_map(|index| block(index).to_le_bytes()).collect()
}

/// The first code of a payload: turns the MMU on with the table that begins so many bytes further.
fn map_as_memory(table: usize) -> Vec<u32> {
    /// 39 bits of address through TTBR0, none through TTBR1; tables are in write-back memory.
    const CONTROL: u32 = 25 | 1 << 23 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8;
    /// Attributes number 0: Normal, write-back.
    const ATTRIBUTES: u32 = 0xff;
    let mut code = vec![address_of(0, table), write_system(TTBR0_EL1, 0)];
    code.extend(load(0, ATTRIBUTES));
    code.push(write_system(MAIR_EL1, 0));
    code.extend(load(0, CONTROL));
    code.extend([write_system(TCR_EL1, 0), ISB, read_system(SCTLR_EL1, 0), SET_BIT_0]);
    code.extend([write_system(SCTLR_EL1, 0), ISB]);
    code
}

// System registers, as MRS and MSR have them.

const SCTLR_EL1: u32 = 1 << 12;
const TTBR0_EL1: u32 = 2 << 12;
const TCR_EL1: u32 = 2 << 12 | 2 << 5;
const MAIR_EL1: u32 = 10 << 12 | 2 << 8;

// Instructions, from the Arm Architecture Reference Manual (DDI 0487), C6.2.

/// `LDRB W0, [X2]`, and with a [`size`] the others.
const LOAD: u32 = 0x3940_0040;
/// `STRB W1, [X2]`, and with a [`size`] the others.
const STORE: u32 = 0x3900_0041;
/// `MOV X1, #-1`.
const ONES: u32 = 0x9280_0001;
/// `CMP X0, X4`.
const COMPARE: u32 = 0xeb04_001f;
/// `ORR X0, X0, #1`.
const SET_BIT_0: u32 = 0xb240_0000;

/// How loads and stores have the number of bytes.
fn size(bytes: u32) -> u32 {
    bytes.trailing_zeros() << 30
}

/// `ADR Xd`, so many bytes further.
pub(super) fn address_of(register: u32, bytes: usize) -> u32 {
    let bytes = u32::try_from(bytes).unwrap_or_default();
    0x1000_0000 | (bytes & 3) << 29 | (bytes >> 2 & 0x7_ffff) << 5 | register
}

#[cfg(test)]
mod tests {
    use super::*;

    // The words were made by an assembler.
    #[test]
    fn instructions_are_encoded_as_an_assembler_does() {
        assert_eq!(
            [
                LOAD | size(2),
                LOAD | size(4),
                LOAD | size(8),
                STORE | size(2),
                STORE | size(4),
                STORE | size(8),
                address_of(0, 4032),
                address_of(3, 9),
                write_system(TTBR0_EL1, 0),
                write_system(MAIR_EL1, 0),
                write_system(TCR_EL1, 0),
                read_system(SCTLR_EL1, 0),
                write_system(SCTLR_EL1, 0),
            ],
            [
                0x7940_0040, // ldrh w0, [x2]
                0xb940_0040, // ldr  w0, [x2]
                0xf940_0040, // ldr  x0, [x2]
                0x7900_0041, // strh w1, [x2]
                0xb900_0041, // str  w1, [x2]
                0xf900_0041, // str  x1, [x2]
                0x1000_7e00, // adr  x0, .+4032
                0x3000_0043, // adr  x3, .+9
                0xd518_2000, // msr  ttbr0_el1, x0
                0xd518_a200, // msr  mair_el1, x0
                0xd518_2040, // msr  tcr_el1, x0
                0xd538_1000, // mrs  x0, sctlr_el1
                0xd518_1000, // msr  sctlr_el1, x0
            ]
        );
    }

    #[test]
    fn the_table_begins_a_page() {
        let read = Access::Read { address: 0x1000, bytes: 4, expected: 7 };
        for count in [1, 100, 1000] {
            let image = access_as_memory(&vec![read; count]);
            assert!(image.len().is_multiple_of(PAGE));
            assert_eq!(&image[image.len() - PAGE..][..16], &table()[..16], "{count}");
        }
    }
}
