//! Guests without an operating system: a few A64 instructions, mostly behind an arm64 `Image` header.

mod accesses;
mod bare_metal;
mod registers;
mod script;
mod toggles;

pub use accesses::{Access, access_as_memory, access_with_write_back};
pub use bare_metal::{LINKED_TO, binary, elf};
pub use registers::{change_a_gicv2_and_reset, change_a_gicv3_and_reset};
pub use script::{Step, script};
pub use toggles::{Toggle, toggle_while_read};

/// The function identifiers of PSCI (Arm DEN 0022, "PSCI function IDs").
const PSCI_VERSION: u32 = 0x8400_0000;
const PSCI_SYSTEM_OFF: u32 = 0x8400_0008;
const PSCI_SYSTEM_RESET: u32 = 0x8400_0009;

/// Where strait's guests have their GICv3 distributor.
const GICD: u32 = 0x0800_0000;

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

/// Writes the byte `value` to guest physical address `address` `count` times, then powers off.
pub fn write_byte(address: u32, value: u32, count: u32) -> Vec<u8> {
    repeat(count, &[STORE_BYTE], &[load(2, address), load(1, value)].concat())
}

/// Makes the hypercall `PSCI_VERSION`, which KVM answers in the kernel, `count` times, then
/// powers off.
pub fn hypercall(count: u32) -> Vec<u8> {
    repeat(count, &call(PSCI_VERSION), &[])
}

/// An interrupt line of an assigned PL330 as the guest sees it.
#[derive(Clone, Copy, Debug)]
pub struct EventLine {
    /// The guest physical address of the controller's registers.
    pub controller: u32,
    /// The event that raises the line.
    pub event: u32,
    /// The line's interrupt number in the GIC (32 and the SPI's).
    pub intid: u32,
}

/// On a GICv3: takes an interrupt of `line` `tries` times, each time with the SPI disabled until the
/// line has risen, then powers off. The first time the line is high already if `high`, else it is
/// raised here. An interrupt that doesn't come makes it reset the machine instead.
pub fn take_interrupts(line: EventLine, high: bool, tries: u32) -> Vec<u8> {
    let [setup, raise, wait, serve] = interrupts(line, tries, PSCI_SYSTEM_RESET);
    let mut code = setup;
    if high {
        code.push(branch(distance(raise.len()) + 1));
    }
    code.extend(each_try(&raise, &wait, &serve));
    code.extend(call(PSCI_SYSTEM_OFF));
    image(&code)
}

/// As [`take_interrupts`], with a line that is low at first; then takes one more, which it neither ends nor
/// clears, and resets the machine. An interrupt that doesn't come makes it power off instead.
pub fn take_interrupts_and_reset(line: EventLine, tries: u32) -> Vec<u8> {
    let [setup, raise, wait, serve] = interrupts(line, tries, PSCI_SYSTEM_OFF);
    let again = [&raise[..], &wait[..]].concat();
    let code = [setup, each_try(&raise, &wait, &serve), again, call(PSCI_SYSTEM_RESET)];
    image(&code.concat())
}

/// Raises, waits and serves until X19 is 0.
fn each_try(raise: &[u32], wait: &[u32], serve: &[u32]) -> Vec<u32> {
    let mut code = [raise, wait, serve].concat();
    code.push(branch_if_not_zero(19, -distance(code.len())));
    code
}

/// What takes an interrupt: what is done once, what raises the line, waits for the interrupt, which does
/// the call `otherwise` if it doesn't come, and serves it.
fn interrupts(line: EventLine, tries: u32, otherwise: u32) -> [Vec<u32>; 4] {
    const TRIES: Register = 19;
    const POLLS: u32 = 4_000_000;
    /// For the host to take the interrupt and to inject it.
    const PAUSE: u32 = 100_000;
    let (word, bit) = (line.intid / 32 * 4, 1 << (line.intid % 32));
    let mut setup = Vec::new();
    setup.extend(store(GICD, 0x12)); // GICD_CTLR: affinity routing, group 1
    setup.extend(store(GICD + 0x080 + word, u32::MAX)); // GICD_IGROUPR: group 1
    setup.extend(store(GICD + 0xc00 + line.intid / 16 * 4, 0)); // GICD_ICFGR: level
    setup.extend(load(0, 0xff));
    setup.extend([write_system(ICC_PMR_EL1, 0)]);
    setup.extend(load(0, 1));
    setup.extend([write_system(ICC_IGRPEN1_EL1, 0), ISB]);
    setup.extend(load(TRIES, tries));

    // DMASEV by the manager thread, through the debug registers (ARM DDI 0424, chapter 3).
    let mut raise = Vec::new();
    raise.extend(store(line.controller + 0x020, 1 << line.event)); // INTEN
    raise.extend(store(line.controller + 0xd08, 0x34 << 16 | line.event << 27)); // DBGINST0
    raise.extend(store(line.controller + 0xd0c, 0)); // DBGINST1
    raise.extend(store(line.controller + 0xd04, 0)); // DBGCMD
    raise.extend(load(3, PAUSE));
    raise.extend([subtract_one(3), branch_if_not_zero(3, -1)]);

    let mut wait = Vec::new();
    wait.extend(store(GICD + 0x100 + word, bit)); // GICD_ISENABLER
    wait.extend(load(3, POLLS));
    wait.extend(load(4, line.intid));
    // Over the failure below if it is the line's.
    let failure = call(otherwise);
    let poll = [read_system(ICC_IAR1_EL1, 0), compare(0, 4), branch_if_equal(3 + 3)];
    wait.extend(poll);
    wait.extend([subtract_one(3), branch_if_not_zero(3, -4)]);
    wait.extend(failure);

    let mut serve = Vec::new();
    serve.extend([move_register(5, 0)]);
    serve.extend(store(line.controller + 0x02c, 1 << line.event)); // INTCLR
    serve.extend([DSB, write_system(ICC_EOIR1_EL1, 5), ISB]);
    serve.extend(store(GICD + 0x180 + word, bit)); // GICD_ICENABLER
    serve.push(subtract_one(TRIES));

    [setup, raise, wait, serve]
}

/// A number of instructions as branches take it.
fn distance(instructions: usize) -> i32 {
    i32::try_from(instructions).unwrap_or_default()
}

/// `prologue`, then `body` `count` times, then power-off.
fn repeat(count: u32, body: &[u32], prologue: &[u32]) -> Vec<u8> {
    image(&[prologue, &repeated(count, body), &call(PSCI_SYSTEM_OFF)].concat())
}

/// `body` `count` times. X19 counts: a PSCI call may change X0 to X17 (Arm DEN 0028, "Register use in
/// AArch64 SMC and HVC calls").
fn repeated(count: u32, body: &[u32]) -> Vec<u32> {
    const COUNTER: Register = 19;
    let mut code = Vec::from(load(COUNTER, count));
    code.extend_from_slice(body);
    code.push(subtract_one(COUNTER));
    code.push(branch_if_not_zero(COUNTER, -distance(body.len() + 1)));
    code
}

/// The size of an `Image`'s header in bytes.
const HEADER: usize = 64;

/// The code behind the header that Documentation/arch/arm64/booting.rst describes.
fn image(code: &[u32]) -> Vec<u8> {
    image_with(code, &[])
}

/// The same with data behind it, which begins a page of 4 KiB.
fn image_with(code: &[u32], data: &[u8]) -> Vec<u8> {
    const ANYWHERE: u64 = 1 << 3;
    const PAGES_OF_4K: u64 = 1 << 1;
    let end = HEADER + code.len() * 4;
    let data_at = end.next_multiple_of(4096);
    let size = u64::try_from(data_at + data.len()).unwrap_or_default();
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
    if !data.is_empty() {
        bytes.resize(data_at, 0);
        bytes.extend_from_slice(data);
    }
    bytes
}

// The instructions, from the Arm Architecture Reference Manual (DDI 0487), C6.2.

const WFI: u32 = 0xd503_207f;
const ISB: u32 = 0xd503_3fdf;
const DSB: u32 = 0xd503_3f9f;

/// System registers of the GIC's CPU interface (IHI 0069, "AArch64 System register
/// descriptions"): op1, CRn, CRm, op2, as MRS and MSR have them.
const ICC_PMR_EL1: u32 = 4 << 12 | 6 << 8;
const ICC_IAR1_EL1: u32 = 12 << 12 | 12 << 8;
const ICC_EOIR1_EL1: u32 = 12 << 12 | 12 << 8 | 1 << 5;
const ICC_IGRPEN1_EL1: u32 = 12 << 12 | 12 << 8 | 7 << 5;

/// `MRS Xt`.
fn read_system(system: u32, register: Register) -> u32 {
    0xd538_0000 | system | register
}

/// `MSR Xt`.
fn write_system(system: u32, register: Register) -> u32 {
    0xd518_0000 | system | register
}

/// `MOV Xd, Xm`.
fn move_register(to: Register, from: Register) -> u32 {
    0xaa00_03e0 | from << 16 | to
}

/// `CMP Wn, Wm`.
fn compare(left: Register, right: Register) -> u32 {
    0x6b00_001f | right << 16 | left << 5
}

/// `B.EQ`, by this many instructions.
fn branch_if_equal(instructions: i32) -> u32 {
    0x5400_0000 | (instructions.cast_unsigned() & 0x7_ffff) << 5
}

/// `STR Wt, [Xn]` of a number to a guest physical address; uses X1 and X2.
fn store(address: u32, value: u32) -> Vec<u32> {
    let mut code = Vec::from(load(1, value));
    code.extend(load(2, address));
    code.push(0xb900_0041);
    code
}

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

/// `STRB W1, [X2]`.
const STORE_BYTE: u32 = 0x3900_0041;

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
    use super::{
        DSB, ICC_EOIR1_EL1, ICC_IAR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ISB, branch_if_equal,
        compare, move_register, power_off, read_byte, read_system, spin, store, write_system,
    };

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

    #[test]
    fn instructions_for_the_gic_are_encoded_as_an_assembler_does() {
        assert_eq!(
            [
                write_system(ICC_PMR_EL1, 0),
                write_system(ICC_IGRPEN1_EL1, 0),
                read_system(ICC_IAR1_EL1, 0),
                write_system(ICC_EOIR1_EL1, 5),
                ISB,
                DSB,
                compare(0, 4),
                branch_if_equal(6),
                move_register(5, 0),
            ],
            [
                0xd518_4600, // msr  icc_pmr_el1, x0
                0xd518_cce0, // msr  icc_igrpen1_el1, x0
                0xd538_cc00, // mrs  x0, icc_iar1_el1
                0xd518_cc25, // msr  icc_eoir1_el1, x5
                0xd503_3fdf, // isb
                0xd503_3f9f, // dsb  sy
                0x6b04_001f, // cmp  w0, w4
                0x5400_00c0, // b.eq .+24
                0xaa00_03e5, // mov  x5, x0
            ]
        );
        assert_eq!(store(0x1000, 2).last(), Some(&0xb900_0041), "str w1, [x2]");
    }
}
