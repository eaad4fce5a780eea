//! What a chip answers in query mode (JESD68.01, "Query Structure Output"; JEP137).

use super::{BANK_SIZE, BLOCK_SIZE, BUFFER_SIZE};

/// The chips side by side in a bank.
const CHIPS: u64 = 2;

/// Where the vendor's table begins.
const PRIMARY: u8 = 0x31;

/// Powers of two that a chip has.
const SIZE: u8 = power(BANK_SIZE / CHIPS);
const BUFFER: u8 = power(BUFFER_SIZE as u64 / CHIPS);

/// The blocks of a chip less one, and a block's size in units of 256 bytes.
const BLOCKS: [u8; 2] = low_bytes(BANK_SIZE / BLOCK_SIZE - 1);
const UNITS: [u8; 2] = low_bytes(BLOCK_SIZE / CHIPS / 256);

/// The table from [`START`] on, a byte to a word of a chip.
const TABLE: [u8; 0x30] = [
    b'Q', b'R', b'Y', // 0x10
    0x01, 0x00, PRIMARY, 0x00, // 0x13: Intel's basic command set and its table
    0x00, 0x00, 0x00, 0x00, // 0x17: no second command set
    0x45, 0x55, 0x00, 0x00, // 0x1b: supply of 4.5 to 5.5 V, and none for programming
    0x07, 0x07, 0x0a, 0x00, // 0x1f: typical times: 128 us a word and a buffer, 1 s a block
    0x04, 0x04, 0x04, 0x00, // 0x23: at most 16 times as much
    SIZE, 0x01, 0x00, BUFFER, 0x00, // 0x27: size, 16 bits wide, write buffer
    0x01, BLOCKS[0], BLOCKS[1], UNITS[0], UNITS[1], // 0x2c: one region of blocks of one size
    b'P', b'R', b'I', b'1', b'0', // 0x31: Intel's table, version 1.0
    0x00, 0x00, 0x00, 0x00, // 0x36: no optional features: operations end at once
    0x00, // 0x3a
    0x01, 0x00, // 0x3b: blocks tell whether they are locked
    0x50, 0x00, // 0x3d: best supply
    0x01, // 0x3f: one protection field, which there has to be
];

/// Where the table begins, in words of a chip.
const START: u64 = 0x10;

/// What a chip answers at this word of it.
pub(super) fn answer(word: u64) -> u8 {
    let at = word.checked_sub(START).and_then(|at| usize::try_from(at).ok());
    at.and_then(|at| TABLE.get(at)).copied().unwrap_or_default()
}

const fn power(size: u64) -> u8 {
    size.trailing_zeros().to_le_bytes()[0]
}

const fn low_bytes(value: u64) -> [u8; 2] {
    let [low, high, ..] = value.to_le_bytes();
    [low, high]
}
