//! Instructions, programs that copy memory, and how the debug registers take single instructions.
//!
//! TRM (ARM DDI 0424), chapter 4, "Instruction set"; chapter 3, "Debug Instruction-0 ChannelRegister".

use std::fmt;

/// A thread of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thread {
    /// The manager, which starts channels.
    Manager,
    /// A channel, counted from 0.
    Channel(u8),
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager => f.write_str("the manager"),
            Self::Channel(number) => write!(f, "channel {number}"),
        }
    }
}

/// An instruction that the debug registers can run: at most six bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction([u8; 6]);

impl Instruction {
    /// DMAKILL: ends the thread's program at once, once its outstanding transfers are through.
    pub(super) const KILL: Self = Self([0x01, 0, 0, 0, 0, 0]);

    /// DMAGO with `ns` set: the manager starts a channel, in the non-secure state, on the program at
    /// this address.
    pub(super) fn go(channel: u8, program: u32) -> Self {
        let [a, b, c, d] = program.to_le_bytes();
        Self([0xa2, channel & 0x7, a, b, c, d])
    }

    /// DMASEV: signals an event, and its interrupt where that is enabled.
    pub(super) fn signal(event: u8) -> Self {
        Self([0x34, event << 3, 0, 0, 0, 0])
    }

    /// The values of DBGINST0 and DBGINST1 that run it on a thread.
    pub(super) fn for_debug(self, thread: Thread) -> (u32, u32) {
        let [a, b, rest @ ..] = self.0;
        // Bit 0: a channel rather than the manager; bits 10:8: which.
        let (debug_thread, channel) = match thread {
            Thread::Manager => (0, 0),
            Thread::Channel(number) => (1, number & 0x7),
        };
        (u32::from_le_bytes([debug_thread, channel, a, b]), u32::from_le_bytes(rest))
    }
}

/// The size in bytes of the longest program that [`Transfer::program`] makes, for 16 MiB by single beats of the
/// narrowest bus: room for it is reserved in advance.
pub(super) const MAX_PROGRAM_SIZE: usize = 1024;

/// The most beats in a burst ("Channel Control Registers", `src_burst_len`).
const MAX_BURST_BEATS: u32 = 16;

/// Loop counters count up to this.
const MAX_LOOP_COUNT: u32 = 256;

/// What limits a transfer's bursts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataPath {
    /// The logarithm of the bytes that the bus carries in a beat.
    pub(super) width_log2: u8,
    /// Beats of that width that a channel may have in the controller's buffer, at least 1.
    pub(super) buffer_beats: u32,
}

/// A copy of bytes from one bus address to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    /// The first byte read.
    pub(super) source: u32,
    /// The first byte written.
    pub(super) destination: u32,
    /// How many: at most 16 MiB, and less where the addresses aren't aligned to the bus.
    pub(super) length: u32,
}

/// The channel registers that DMAMOV sets, by their numbers.
#[derive(Clone, Copy)]
enum ChannelRegister {
    Sar = 0,
    Ccr = 1,
    Dar = 2,
}

impl Transfer {
    /// The program that does it and signals `event` once the last byte is written.
    ///
    /// Bursts are of the widest beats that both addresses are aligned to; what they leave over goes
    /// by single beats, then by single bytes. So no beat is misaligned, which controllers treat
    /// differently.
    pub(super) fn program(&self, path: DataPath, event: u8) -> Vec<u8> {
        let aligned = (self.source | self.destination).trailing_zeros();
        let beat = aligned.min(u32::from(path.width_log2));
        let beats = path.buffer_beats.clamp(1, MAX_BURST_BEATS);
        let mut program = Program(Vec::new());
        program.set(ChannelRegister::Sar, self.source);
        program.set(ChannelRegister::Dar, self.destination);
        let mut left = self.length;
        for (beat, beats) in [(beat, beats), (beat, 1), (0, 1)] {
            let burst = beats << beat;
            if left >= burst {
                program.set(ChannelRegister::Ccr, control(beat, beats));
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
    fn set(&mut self, register: ChannelRegister, value: u32) {
        self.0.extend([0xbc, register as u8]);
        self.0.extend(value.to_le_bytes());
    }

    /// `count` bursts read and written, in two nested loops at most.
    fn bursts(&mut self, mut count: u32) {
        while count > 0 {
            let rounds = (count / MAX_LOOP_COUNT).min(MAX_LOOP_COUNT);
            if rounds > 1 {
                self.repeat(1, rounds, |program| program.repeat(0, MAX_LOOP_COUNT, Self::burst));
                count = count.saturating_sub(rounds * MAX_LOOP_COUNT);
            } else {
                let once = count.min(MAX_LOOP_COUNT);
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
        buffer_beats: u32,
        width_log2: u8,
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
                        let lines = self.buffer.len().div_ceil(1 << self.width_log2);
                        assert!(lines <= self.buffer_beats as usize, "the buffer is full");
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
            assert!(beat <= 1 << self.width_log2);
            self.registers[register] += beat * beats;
            from as usize..(from + beat * beats) as usize
        }
    }

    /// PhandleMap in a memory of random bytes, and checks every one of them.
    fn check(transfer: Transfer, path: DataPath, event: u8) {
        let program = transfer.program(path, event);
        assert!(program.len() <= MAX_PROGRAM_SIZE, "{transfer:?}: {} bytes", program.len());
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let end = transfer.source.max(transfer.destination) + transfer.length + 64;
        let before: Vec<u8> = (0..end).map(|_| next()).collect();
        let mut expected = before.clone();
        let from = transfer.source as usize..(transfer.source + transfer.length) as usize;
        expected.copy_within(from, transfer.destination as usize);
        let (registers, counters, buffer) = Default::default();
        let DataPath { buffer_beats, width_log2 } = path;
        let mut machine =
            Machine { memory: before, registers, counters, buffer, buffer_beats, width_log2 };
        assert_eq!(machine.run(&program), event);
        assert!(machine.memory == expected, "{transfer:?} {path:?}");
    }

    #[test]
    fn every_length_and_alignment_is_copied_exactly() {
        for length in (0..70).chain([127, 128, 129, 255, 256, 4095, 4097]) {
            for source in [0, 1, 2, 4, 7, 8] {
                for destination in [0x2_0000, 0x2_0001, 0x2_0004, 0x2_0010] {
                    let transfer = Transfer { source, destination, length };
                    check(transfer, DataPath { width_log2: 3, buffer_beats: 16 }, 7);
                }
            }
        }
    }

    #[test]
    fn bursts_fit_the_buffer_of_any_controller() {
        let transfer = Transfer { source: 0, destination: 0x2_0000, length: 70_001 };
        for width_log2 in 2..=4 {
            for buffer_beats in [1, 2, 3, 16, 128] {
                check(transfer, DataPath { width_log2, buffer_beats }, 31);
            }
        }
    }

    #[test]
    fn the_longest_transfer_fits_a_program() {
        let length = 16 << 20;
        let transfer = Transfer { source: 0, destination: length, length };
        check(transfer, DataPath { width_log2: 4, buffer_beats: 16 }, 0);
        assert!(
            transfer.program(DataPath { width_log2: 2, buffer_beats: 1 }, 0).len()
                <= MAX_PROGRAM_SIZE
        );
    }

    #[test]
    fn a_small_transfer_is_encoded_as_in_the_manual() {
        let transfer = Transfer { source: 0x1000, destination: 0x2004, length: 65 };
        let program = transfer.program(DataPath { width_log2: 3, buffer_beats: 16 }, 5);
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

    #[test]
    fn debug_registers_hold_the_thread_and_the_bytes_in_order() {
        let kill = Instruction::KILL;
        assert_eq!(kill.for_debug(Thread::Manager), (0x0001_0000, 0));
        assert_eq!(kill.for_debug(Thread::Channel(5)), (0x0001_0501, 0));
        let go = Instruction::go(3, 0x1234_5678);
        assert_eq!(go.for_debug(Thread::Manager), (0x03a2_0000, 0x1234_5678));
        let signal = Instruction::signal(5);
        assert_eq!(signal.for_debug(Thread::Manager), (0x2834_0000, 0));
    }
}
