//! The registers: offsets in bytes from the device's base. They are of 8 to 64 bits, and are accessed by
//! words of 32, which hold what the SD Host Controller Simplified Specification, version 4.20, chapter 2,
//! has at these offsets.

/// Block Size in bits 11:0, Block Count in 31:16.
pub(super) const BLOCK: u64 = 0x04;
/// Argument of a command.
pub(super) const ARGUMENT: u64 = 0x08;
/// Transfer Mode in bits 15:0, Command in 31:16: writing it begins a command.
pub(super) const COMMAND: u64 = 0x0c;
/// Response, the first of four words.
pub(super) const RESPONSE: u64 = 0x10;
/// Buffer Data Port.
pub(super) const DATA_PORT: u64 = 0x20;
/// Present State.
pub(super) const PRESENT_STATE: u64 = 0x24;
/// Present State: a command, or a transfer, is under way.
pub(super) const INHIBIT: u32 = 1 << 0 | 1 << 1;
/// Present State: a card is there.
pub(super) const CARD_INSERTED: u32 = 1 << 16;
/// Host Control 1 in bits 7:0, Power Control in 15:8.
pub(super) const CONTROL: u64 = 0x28;
/// Host Control 1: ADMA2 with 32-bit addresses; Power Control: 3.3 V, on.
pub(super) const ADMA2_AND_POWER: u32 = 2 << 3 | 0xf << 8;
/// Clock Control in bits 15:0, Timeout Control in 23:16, Software Reset in 31:24.
pub(super) const CLOCK: u64 = 0x2c;
/// Clock Control: the internal clock is on; it is stable; the card has it.
pub(super) const CLOCK_ON: u32 = 1 << 0;
/// Clock Control: the internal clock is stable.
pub(super) const CLOCK_STABLE: u32 = 1 << 1;
/// Clock Control: the card has the clock.
pub(super) const CARD_CLOCK_ON: u32 = 1 << 2;
/// Timeout Control: the longest.
pub(super) const LONGEST_TIMEOUT: u32 = 0xe << 16;
/// Software Reset: of all but what detects cards.
pub(super) const RESET_ALL: u32 = 1 << 24;
/// Software Reset: of what commands and transfers need.
pub(super) const RESET_LINES: u32 = 1 << 25 | 1 << 26;
/// Software Reset: one of them is under way.
pub(super) const RESET: u32 = RESET_ALL | RESET_LINES;
/// Normal Interrupt Status in bits 15:0, Error Interrupt Status in 31:16; cleared by writing 1.
pub(super) const INT_STATUS: u64 = 0x30;
/// A command has ended.
pub(super) const COMMAND_COMPLETE: u32 = 1 << 0;
/// A transfer, or being busy, has ended.
pub(super) const TRANSFER_COMPLETE: u32 = 1 << 1;
/// The buffer holds a block that was read.
pub(super) const BUFFER_READ_READY: u32 = 1 << 5;
/// Errors, but those that vendors define.
pub(super) const ERRORS: u32 = 0x07ff << 16;
/// An error: of ADMA.
pub(super) const ADMA_ERROR: u32 = 1 << 25;
/// Which interrupts have a status.
pub(super) const INT_STATUS_ENABLE: u64 = 0x34;
/// Which statuses raise the interrupt.
pub(super) const INT_SIGNAL_ENABLE: u64 = 0x38;
/// Capabilities, the first of two words.
pub(super) const CAPABILITIES: u64 = 0x40;
/// Capabilities: ADMA2.
pub(super) const HAS_ADMA2: u32 = 1 << 19;
/// Where the list of ADMA descriptors is, the first of two words.
pub(super) const ADMA_ADDRESS: u64 = 0x58;
/// Slot Interrupt Status in bits 15:0, the version of the specification in 23:16, the vendor's in 31:24.
pub(super) const VERSION: u64 = 0xfc;

/// The version of the specification, as its first number and 10 times its second, if that is one there
/// is; of [`VERSION`].
pub(super) fn specification(version: u32) -> Option<u32> {
    const KNOWN: [u32; 6] = [100, 200, 300, 400, 410, 420];
    KNOWN.get((version >> 16 & 0xff) as usize).copied()
}

/// Clock Control for a clock of at most `wanted` Hz, from the first word of the capabilities
/// ("Capabilities Register", Base Clock Frequency For SD Clock; "Clock Control Register").
pub(super) fn divided_clock(specification: u32, capabilities: u32, wanted: u32) -> u32 {
    let mask = if specification < 300 { 0x3f } else { 0xff };
    // Not told is as fast as any.
    let base = match capabilities >> 8 & mask {
        0 => 255_000_000,
        base => base.saturating_mul(1_000_000),
    };
    let half = base.div_ceil(wanted.saturating_mul(2).max(1));
    if specification < 300 {
        return half.next_power_of_two().min(0x80) << 8;
    }
    let half = half.min(0x3ff);
    (half & 0xff) << 8 | (half >> 8) << 6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_never_faster_than_wanted() {
        for (version, capabilities, wanted, clock) in [
            (300, 100 << 8, 400_000, 125 << 8),
            (300, 200 << 8, 400_000, 250 << 8),
            (300, 255 << 8, 400_000, (319 & 0xff) << 8 | 1 << 6),
            (300, 100 << 8, 25_000_000, 2 << 8),
            (300, 0, 400_000, (319 & 0xff) << 8 | 1 << 6),
            (200, 50 << 8, 400_000, 64 << 8),
            (200, 0xff << 8, 400_000, 128 << 8),
            (300, 100 << 8, 1, 0xff << 8 | 3 << 6),
        ] {
            let found = divided_clock(version, capabilities, wanted);
            assert_eq!(found, clock, "{version} {capabilities:#x} {wanted}");
        }
    }

    #[test]
    fn versions_are_those_of_the_specification() {
        let version = |number: u32| specification(number << 16 | 0x8900_0000);
        assert_eq!(
            [0, 1, 2, 5, 6, 0xff].map(version),
            [Some(100), Some(200), Some(300), Some(420), None, None]
        );
    }
}
