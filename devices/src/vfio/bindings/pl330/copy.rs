//! Programs that copy memory: TRM (ARM DDI 0424), chapter 4, "Instruction set".

/// Bytes of the longest program that [`Copy::program`] makes, for 16 MiB by single beats of the
/// narrowest bus: room for it is reserved in advance.
pub(super) const PROGRAM_MAX: usize = 1024;

/// The most beats in a burst ("Channel Control Registers", `src_burst_len`).
const BEATS_MAX: u32 = 16;

/// Loop counters count up to this.
const LOOP_MAX: u32 = 256;

/// What limits a transfer's bursts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bus {
    /// The logarithm of the bytes that the bus carries at once.
    pub(super) width: u8,
    /// Beats of that width that a channel may have in the controller's buffer, at least 1.
    pub(super) room: u32,
}

/// A copy of bytes from one bus address to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// The first byte read.
    pub(super) source: u32,
    /// The first byte written.
    pub(super) destination: u32,
    /// How many: at most 16 MiB, and less where the addresses aren't aligned to the bus.
    pub(super) length: u32,
}

/// The registers that DMAMOV sets.
#[derive(Clone, Copy)]
enum Register {
    Source = 0,
    Control = 1,
    Destination = 2,
}

impl Copy {
    /// The program that does it and signals `event` once the last byte is written.
    ///
    /// Bursts are of the widest beats that both addresses are aligned to; what they leave over goes
    /// by single beats, then by single bytes. So no beat is misaligned, which controllers treat
    /// differently.
    pub(super) fn program(&self, bus: Bus, event: u8) -> Vec<u8> {
        let aligned = (self.source | self.destination).trailing_zeros();
        let beat = aligned.min(u32::from(bus.width));
        let beats = bus.room.clamp(1, BEATS_MAX);
        let mut program = Program(Vec::new());
        program.set(Register::Source, self.source);
        program.set(Register::Destination, self.destination);
        let mut left = self.length;
        for (beat, beats) in [(beat, beats), (beat, 1), (0, 1)] {
            let burst = beats << beat;
            if left >= burst {
                program.set(Register::Control, control(beat, beats));
                program.bursts(left / burst);
                left %= burst;
            }
        }
        program.end(event);
        program.0
    }
}

/// CCRn: both addresses increment, the same bursts each way, non-secure accesses.
fn control(beat: u32, beats: u32) -> u32 {
    const INCREMENT: u32 = 1;
    const NON_SECURE: u32 = 0b010 << 8;
    let side = INCREMENT | beat << 1 | beats.saturating_sub(1) << 4 | NON_SECURE;
    side | side << 14
}

struct Program(Vec<u8>);

impl Program {
    /// DMAMOV.
    fn set(&mut self, register: Register, value: u32) {
        self.0.extend([0xbc, register as u8]);
        self.0.extend(value.to_le_bytes());
    }

    /// `count` bursts read and written, in two nested loops at most.
    fn bursts(&mut self, mut count: u32) {
        while count > 0 {
            let rounds = (count / LOOP_MAX).min(LOOP_MAX);
            if rounds > 1 {
                self.repeat(1, rounds, |program| program.repeat(0, LOOP_MAX, Self::burst));
                count = count.saturating_sub(rounds * LOOP_MAX);
            } else {
                let once = count.min(LOOP_MAX);
                self.repeat(0, once, Self::burst);
                count = count.saturating_sub(once);
            }
        }
    }

    /// DMALD, DMAST.
    fn burst(&mut self) {
        self.0.extend([0x04, 0x08]);
    }

    /// DMALP and DMALPEND of this loop counter around a body, `count` (1 to 256) times.
    fn repeat(&mut self, counter: u8, count: u32, body: impl FnOnce(&mut Self)) {
        let [last, ..] = count.saturating_sub(1).to_le_bytes();
        self.0.extend([0x20 | counter << 1, last]);
        let start = self.0.len();
        body(self);
        // Counted backwards from the DMALPEND; bodies are a few bytes.
        let back = u8::try_from(self.0.len() - start).unwrap_or(u8::MAX);
        self.0.extend([0x38 | counter << 2, back]);
    }

    /// DMAWMB, DMASEV, DMAEND: the event comes after the last write.
    fn end(&mut self, event: u8) {
        self.0.extend([0x13, 0x34, event << 3, 0x00]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs programs as the manual describes the instructions, on `memory` by bus address.
    struct Machine {
        memory: Vec<u8>,
        registers: [u32; 3],
        counters: [u32; 2],
        buffer: Vec<u8>,
        room: u32,
        width: u8,
    }

    impl Machine {
        /// The event that was signalled.
        fn run(&mut self, program: &[u8]) -> u8 {
            let (mut pc, mut event) = (0, None);
            loop {
                let word = |at: usize| u32::from_le_bytes(program[at..at + 4].try_into().unwrap());
                match program[pc] {
                    0xbc => {
                        self.registers[usize::from(program[pc + 1])] = word(pc + 2);
                        pc += 6;
                    }
                    op @ (0x20 | 0x22) => {
                        self.counters[usize::from(op >> 1 & 1)] = program[pc + 1].into();
                        pc += 2;
                    }
                    op @ (0x38 | 0x3c) => {
                        let counter = &mut self.counters[usize::from(op >> 2 & 1)];
                        if *counter == 0 {
                            pc += 2;
                        } else {
                            *counter -= 1;
                            pc -= usize::from(program[pc + 1]);
                        }
                    }
                    0x04 => {
                        let range = self.burst(0, 1);
                        self.buffer.extend_from_slice(&self.memory[range]);
                        let lines = self.buffer.len().div_ceil(1 << self.width);
                        assert!(lines <= self.room as usize, "the buffer is full");
                        pc += 1;
                    }
                    0x08 => {
                        let range = self.burst(2, 15);
                        let bytes: Vec<u8> = self.buffer.drain(..range.len()).collect();
                        self.memory[range].copy_from_slice(&bytes);
                        pc += 1;
                    }
                    0x13 => pc += 1,
                    0x34 => {
                        event = Some(program[pc + 1] >> 3);
                        pc += 2;
                    }
                    0x00 => {
                        assert_eq!(pc + 1, program.len(), "nothing behind DMAEND");
                        assert!(self.buffer.is_empty());
                        return event.unwrap();
                    }
                    other => panic!("{other:#x} at {pc}"),
                }
            }
        }

        /// The addresses of a burst, which the register is moved past; its half of CCR begins with
        /// the size at bit `shift`.
        fn burst(&mut self, register: usize, shift: u32) -> std::ops::Range<usize> {
            let control = self.registers[1];
            let beat = 1 << (control >> shift & 7);
            let beats = (control >> (shift + 3) & 0xf) + 1;
            assert_eq!(control >> (shift + 7) & 7, 2, "non-secure");
            let from = self.registers[register];
            assert!(from.is_multiple_of(beat), "{from:#x} isn't aligned to {beat}");
            assert!(beat <= 1 << self.width);
            self.registers[register] += beat * beats;
            from as usize..(from + beat * beats) as usize
        }
    }

    /// PhandleMap in a memory of random bytes, and checks every one of them.
    fn check(copy: Copy, bus: Bus, event: u8) {
        let program = copy.program(bus, event);
        assert!(program.len() <= PROGRAM_MAX, "{copy:?}: {} bytes", program.len());
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let end = copy.source.max(copy.destination) + copy.length + 64;
        let before: Vec<u8> = (0..end).map(|_| next()).collect();
        let mut expected = before.clone();
        let from = copy.source as usize..(copy.source + copy.length) as usize;
        expected.copy_within(from, copy.destination as usize);
        let (registers, counters, buffer) = Default::default();
        let Bus { room, width } = bus;
        let mut machine = Machine { memory: before, registers, counters, buffer, room, width };
        assert_eq!(machine.run(&program), event);
        assert!(machine.memory == expected, "{copy:?} {bus:?}");
    }

    #[test]
    fn every_length_and_alignment_is_copied_exactly() {
        for length in (0..70).chain([127, 128, 129, 255, 256, 4095, 4097]) {
            for source in [0, 1, 2, 4, 7, 8] {
                for destination in [0x2_0000, 0x2_0001, 0x2_0004, 0x2_0010] {
                    let copy = Copy { source, destination, length };
                    check(copy, Bus { width: 3, room: 16 }, 7);
                }
            }
        }
    }

    #[test]
    fn any_controller_has_room_for_the_bursts() {
        let copy = Copy { source: 0, destination: 0x2_0000, length: 70_001 };
        for width in 2..=4 {
            for room in [1, 2, 3, 16, 128] {
                check(copy, Bus { width, room }, 31);
            }
        }
    }

    #[test]
    fn the_longest_copy_fits_a_program() {
        let length = 16 << 20;
        let copy = Copy { source: 0, destination: length, length };
        check(copy, Bus { width: 4, room: 16 }, 0);
        assert!(copy.program(Bus { width: 2, room: 1 }, 0).len() <= PROGRAM_MAX);
    }

    #[test]
    fn a_small_copy_is_the_bytes_that_the_manual_gives() {
        let copy = Copy { source: 0x1000, destination: 0x2004, length: 65 };
        let program = copy.program(Bus { width: 3, room: 16 }, 5);
        assert_eq!(
            program,
            [
                0xbc, 0, 0x00, 0x10, 0, 0, // DMAMOV SAR
                0xbc, 2, 0x04, 0x20, 0, 0, // DMAMOV DAR
                0xbc, 1, 0xf5, 0x42, 0xbd, 0x00, // DMAMOV CCR: 16 beats of 4 bytes
                0x20, 0, 0x04, 0x08, 0x38, 2, // DMALP 1, DMALD, DMAST, DMALPEND
                0xbc, 1, 0x01, 0x42, 0x80, 0x00, // DMAMOV CCR: 1 beat of 1 byte
                0x20, 0, 0x04, 0x08, 0x38, 2, // DMALP 1, DMALD, DMAST, DMALPEND
                0x13, 0x34, 0x28, 0x00, // DMAWMB, DMASEV 5, DMAEND
            ]
        );
    }
}
