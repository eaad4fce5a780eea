//! Programs for a PL330 ("CoreLink DMA-330 TRM", ARM DDI 0424, chapter 4, "Instruction set").

const END: u8 = 0x00;
const LOAD: u8 = 0x04;
const STORE: u8 = 0x08;
const WRITE_BARRIER: u8 = 0x13;
const LOOP_0: u8 = 0x20;
const LOOP_END: u8 = 0x28;
const LOOP_COUNTED: u8 = 1 << 4;
const WAIT_FOR_EVENT: u8 = 0x36;
const MOVE: u8 = 0xbc;

/// The registers that DMAMOV sets.
const SOURCE: u8 = 0;
const CONTROL: u8 = 1;
const DESTINATION: u8 = 2;

/// Bytes moved by one DMALD or DMAST: 16 beats of 4 bytes.
pub(crate) const BURST: u32 = 64;

/// CCRn: both addresses increment, 16 beats of 4 bytes each way, accesses are non-secure
/// (ARM DDI 0424, "Channel Control Registers").
const CONTROL_VALUE: u32 = {
    const fn half(increment: u32, beat: u32, beats: u32, protection: u32) -> u32 {
        increment | beat << 1 | (beats - 1) << 4 | protection << 8
    }
    let side = half(1, 2, 16, 0b010);
    side | side << 14
};

/// A program that copies `last + 1` bursts from one bus address to another; once, or whenever an
/// event happens, for ever.
pub(crate) fn copy(from: u32, to: u32, last: u8, whenever: Option<u8>) -> Vec<u8> {
    let mut program = Vec::new();
    if let Some(event) = whenever {
        program.extend([WAIT_FOR_EVENT, event << 3]);
    }
    for (register, value) in [(CONTROL, CONTROL_VALUE), (SOURCE, from), (DESTINATION, to)] {
        program.extend([MOVE, register]);
        program.extend(value.to_le_bytes());
    }
    program.extend([LOOP_0, last]);
    program.extend([LOAD, STORE]);
    program.extend([LOOP_END | LOOP_COUNTED, 2]);
    program.push(WRITE_BARRIER);
    if whenever.is_some() {
        let back = u8::try_from(program.len()).unwrap_or(u8::MAX);
        program.extend([LOOP_END, back]);
    }
    program.push(END);
    program
}

#[cfg(test)]
mod tests {
    use super::copy;

    #[test]
    fn a_copy_is_the_bytes_the_manual_gives() {
        let once = copy(0x4000_0000, 0x5000_1000, 3, None);
        assert_eq!(
            once,
            [
                0xbc, 1, 0xf5, 0x42, 0xbd, 0x00, // DMAMOV CCR
                0xbc, 0, 0x00, 0x00, 0x00, 0x40, // DMAMOV SAR
                0xbc, 2, 0x00, 0x10, 0x00, 0x50, // DMAMOV DAR
                0x20, 3, // DMALP 4
                0x04, 0x08, // DMALD, DMAST
                0x38, 2,    // DMALPEND
                0x13, // DMAWMB
                0x00, // DMAEND
            ]
        );
    }

    #[test]
    fn a_copy_on_an_event_waits_and_jumps_back_to_its_beginning() {
        let program = copy(0, 0, 0, Some(3));
        assert_eq!(program[..2], [0x36, 0x18], "DMAWFE 3");
        assert_eq!(program[27..], [0x28, 27, 0x00], "DMALPEND");
    }
}
