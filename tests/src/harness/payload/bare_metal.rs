//! Programs that are no Linux kernel: an ELF file, and the bare binary.

use super::{
    PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, STORE_BYTE, branch_if_equal, call, compare, distance, load,
};

/// The first word of a device tree blob (Devicetree Specification, 5.2), as a little-endian CPU reads it.
const FDT_MAGIC: u32 = 0xedfe_0dd0;

/// `LDR W3, [X0]`.
const LOAD_FROM_X0: u32 = 0xb940_0003;

/// Where [`elf()`] is linked to.
pub const LINKED_TO: u32 = 0x4060_0000;

/// Writes this text to the data register at guest physical address `serial` and powers off if X0 points to
/// a device tree; resets the machine if not. It runs anywhere.
pub fn binary(serial: u32, text: &str) -> Vec<u8> {
    let reset = call(PSCI_SYSTEM_RESET);
    let mut code = vec![LOAD_FROM_X0];
    code.extend(load(4, FDT_MAGIC));
    code.extend([compare(3, 4), branch_if_equal(distance(reset.len()) + 1)]);
    code.extend(reset);
    code.extend(load(2, serial));
    for byte in text.bytes() {
        code.extend(load(1, byte.into()));
        code.push(STORE_BYTE);
    }
    code.extend(call(PSCI_SYSTEM_OFF));
    code.iter().flat_map(|instruction| instruction.to_le_bytes()).collect()
}

/// The same program as an ELF file (System V ABI, "ELF Header" and "Program Header").
pub fn elf(serial: u32, text: &str) -> Vec<u8> {
    const ET_EXEC: u16 = 2;
    const EM_AARCH64: u16 = 183;
    const PT_LOAD: u32 = 1;
    const READ_EXECUTE: u32 = 5;
    const CODE_AT: u64 = 4096;
    let code = binary(serial, text);
    let (size, at) = (code.len() as u64, u64::from(LINKED_TO));
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(ET_EXEC.to_le_bytes());
    file.extend(EM_AARCH64.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    // Entry, program headers, no section headers.
    file.extend([at, 64, 0].iter().flat_map(|field| field.to_le_bytes()));
    file.extend([0; 4]);
    file.extend([64, 56, 1, 64, 0, 0].iter().flat_map(|field: &u16| field.to_le_bytes()));
    file.extend([PT_LOAD, READ_EXECUTE].iter().flat_map(|field| field.to_le_bytes()));
    let segment = [CODE_AT, at, at, size, size + 0x10_0000, CODE_AT];
    file.extend(segment.iter().flat_map(|field| field.to_le_bytes()));
    file.resize(4096, 0);
    file.extend(code);
    file
}
