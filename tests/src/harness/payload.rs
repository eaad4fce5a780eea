//! Guests without an operating system: a few A64 instructions behind an arm64 `Image` header.

/// The function identifiers of PSCI (Arm DEN 0022, "PSCI function IDs").
const PSCI_VERSION: u32 = 0x8400_0000;
const PSCI_SYSTEM_OFF: u32 = 0x8400_0008;
const PSCI_SYSTEM_RESET: u32 = 0x8400_0009;

/// A general-purpose register, X0 to X30.
type Register = u32;

/// Powers the machine off at once.
pub fn power_off() -> Vec<u8> {
    image(&call(PSCI_SYSTEM_OFF))
}

/// Resets the machine at once.
pub fn reset() -> Vec<u8> {
    image(&call(PSCI_SYSTEM_RESET))
}

/// Spins until somebody else ends it.
pub fn spin() -> Vec<u8> {
    image(&[branch(0)])
}

/// Waits for an interrupt that doesn't come, with all of them masked.
pub fn wait() -> Vec<u8> {
    image(&[WFI, branch(-1)])
}

/// Reads the byte at guest physical address `address` `count` times, then powers off.
pub fn read_byte(address: u32, count: u32) -> Vec<u8> {
    repeat(count, &[load_byte(0, 2)], &load(2, address))
}

/// Makes the hypercall `PSCI_VERSION`, which KVM answers in the kernel, `count` times, then
/// powers off.
pub fn hypercall(count: u32) -> Vec<u8> {
    repeat(count, &call(PSCI_VERSION), &[])
}

/// `prologue`, then `body` `count` times, then power-off. X19 counts: a PSCI call may change X0
/// to X17 (Arm DEN 0028, "Register use in AArch64 SMC and HVC calls").
fn repeat(count: u32, body: &[u32], prologue: &[u32]) -> Vec<u8> {
    const COUNTER: Register = 19;
    let mut code = prologue.to_vec();
    code.extend(load(COUNTER, count));
    code.extend_from_slice(body);
    code.push(subtract_one(COUNTER));
    let back = i32::try_from(body.len() + 1).unwrap_or_default();
    code.push(branch_if_not_zero(COUNTER, -back));
    code.extend(call(PSCI_SYSTEM_OFF));
    image(&code)
}

/// The code behind the header that Documentation/arch/arm64/booting.rst describes.
fn image(code: &[u32]) -> Vec<u8> {
    const HEADER: usize = 64;
    const ANYWHERE: u64 = 1 << 3;
    const PAGES_OF_4K: u64 = 1 << 1;
    let size = u64::try_from(HEADER + code.len() * 4).unwrap_or_default();
    let mut bytes = Vec::new();
    bytes.extend(branch(16).to_le_bytes()); // over the header
    bytes.extend([0; 4]);
    bytes.extend(0_u64.to_le_bytes()); // text_offset
    bytes.extend(size.next_multiple_of(4096).to_le_bytes()); // image_size
    bytes.extend((ANYWHERE | PAGES_OF_4K).to_le_bytes());
    bytes.extend([0; 24]);
    bytes.extend(b"ARM\x64");
    bytes.extend([0; 4]);
    bytes.extend(code.iter().flat_map(|instruction| instruction.to_le_bytes()));
    bytes
}

// The instructions, from the Arm Architecture Reference Manual (DDI 0487), C6.2.

const WFI: u32 = 0xd503_207f;

/// `HVC #0` with this function in W0.
fn call(function: u32) -> Vec<u32> {
    let [low, high] = load(0, function);
    vec![low, high, 0xd400_0002]
}

/// `MOVZ` and `MOVK`: a 32-bit number.
fn load(register: Register, value: u32) -> [u32; 2] {
    [0xd280_0000 | (value & 0xffff) << 5 | register, 0xf2a0_0000 | (value >> 16) << 5 | register]
}

/// `LDRB Wt, [Xn]`.
fn load_byte(target: Register, address: Register) -> u32 {
    0x3940_0000 | address << 5 | target
}

/// `SUB Xd, Xd, #1`.
fn subtract_one(register: Register) -> u32 {
    0xd100_0400 | register << 5 | register
}

/// `B`, by this many instructions.
fn branch(instructions: i32) -> u32 {
    0x1400_0000 | instructions.cast_unsigned() & 0x03ff_ffff
}

/// `CBNZ Xt`, by this many instructions.
fn branch_if_not_zero(register: Register, instructions: i32) -> u32 {
    0xb500_0000 | (instructions.cast_unsigned() & 0x7_ffff) << 5 | register
}

#[cfg(test)]
mod tests {
    use super::{power_off, read_byte, spin};

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes[64..].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn the_header_is_that_of_an_image() {
        let bytes = power_off();
        assert_eq!(&bytes[56..60], b"ARM\x64");
        assert_eq!(&bytes[0..4], &0x1400_0010_u32.to_le_bytes(), "b .+64");
        assert_eq!(&bytes[16..24], &4096_u64.to_le_bytes(), "image_size");
        assert_eq!(&bytes[24..32], &0xa_u64.to_le_bytes(), "flags");
    }

    // The words were made by an assembler.
    #[test]
    fn instructions_are_encoded_as_an_assembler_does() {
        assert_eq!(words(&power_off()), [0xd280_0100, 0xf2b0_8000, 0xd400_0002]);
        assert_eq!(words(&spin()), [0x1400_0000]);
        assert_eq!(
            words(&read_byte(0x0900_0005, 0x1_0002)),
            [
                0xd280_00a2, // mov  x2, #0x5
                0xf2a1_2002, // movk x2, #0x900, lsl #16
                0xd280_0053, // mov  x19, #0x2
                0xf2a0_0033, // movk x19, #0x1, lsl #16
                0x3940_0040, // ldrb w0, [x2]
                0xd100_0673, // sub  x19, x19, #1
                0xb5ff_ffd3, // cbnz x19, .-8
                0xd280_0100, // mov  x0, #0x8
                0xf2b0_8000, // movk x0, #0x8400, lsl #16
                0xd400_0002, // hvc  #0
            ]
        );
    }
}
