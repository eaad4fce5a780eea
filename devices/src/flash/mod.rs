//! Flash memory that firmware is in, and that it keeps its variables in.
//!
//! As on QEMU's `virt`: each bank is two chips of 16 bits side by side that speak the Common Flash
//! Interface (JEDEC JESD68.01) and Intel's basic command set (JEP137, 0x0001). A bank that is read like
//! memory is a memory slot that the guest can't write to, so that code runs in it; while it answers a
//! command, the guest's reads trap, too.

mod bank;
mod chips;
mod query;
mod variables;
mod writer;

use std::ops::Range;

use boot::fdt::Node;

pub use bank::Bank;
pub use variables::{VariableFile, VariableFileError, VariableFileFault};

/// The size of a bank in bytes: two chips of 32 MiB.
pub const BANK_SIZE: u64 = 64 << 20;

/// The bytes that a bank has side by side.
const BANK_WIDTH: u32 = 4;

/// The bytes of a bank that are erased together: a block of each chip.
const BLOCK_SIZE: u64 = 256 << 10;

/// The bytes of a bank that are programmed together at most: a write buffer of each chip.
const BUFFER_SIZE: usize = 4 << 10;

/// The node of these banks (GPA), which lie side by side (Linux, devicetree/bindings/mtd/mtd-physmap.yaml).
pub fn node(banks: &[Range<u64>]) -> Node {
    let base = banks.first().map(|bank| bank.start).unwrap_or_default();
    Node::at("flash", base)
        .string("compatible", "cfi-flash")
        .reg(banks.iter().map(|bank| (bank.start, bank.end.saturating_sub(bank.start))))
        .u32("bank-width", BANK_WIDTH)
}

#[cfg(test)]
mod tests;
