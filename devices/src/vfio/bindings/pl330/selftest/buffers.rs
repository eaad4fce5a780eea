//! The memory in which transfers are staged: programs, what they copy and where to.

use std::sync::Arc;

use super::super::copy::PROGRAM_MAX;
use crate::vfio::selftest::{DmaBuffer, SelfTest, SelfTestError};

/// Bytes on both sides of a transfer that it must leave alone; where the first one begins.
pub(super) const MARGIN: usize = 64;

/// Room for a program of each channel, a source full of a pattern and a destination; and a place
/// where there is nothing.
pub(super) struct TransferBuffers {
    programs: Buffer,
    source: Buffer,
    destination: Buffer,
    hole: u32,
    /// What the source holds.
    pattern: Vec<u8>,
    /// What the destination holds before: no byte is right by chance.
    complement: Vec<u8>,
}

/// Memory, and its place on the bus.
struct Buffer {
    memory: Arc<DmaBuffer>,
    iova: u32,
}

impl TransferBuffers {
    /// For transfers of at most `largest` bytes.
    pub(super) fn new(
        test: &mut SelfTest,
        channels: u8,
        largest: usize,
    ) -> Result<Self, SelfTestError> {
        let size = largest.saturating_add(2 * MARGIN);
        let programs = Buffer::new(test, PROGRAM_MAX * usize::from(channels))?;
        let (source, destination) = (Buffer::new(test, size)?, Buffer::new(test, size)?);
        let hole = narrow(test.hole(1 << 20)?)?;
        let pattern = pattern(size);
        source.memory.write(0, &pattern);
        let complement = pattern.iter().map(|byte| !byte).collect();
        Ok(Self { programs, source, destination, hole, pattern, complement })
    }

    /// The bus address at which nothing is mapped.
    pub(super) fn hole(&self) -> u32 {
        self.hole
    }

    /// The bus address of a byte of the source.
    pub(super) fn source(&self, offset: usize) -> u32 {
        self.source.at(offset)
    }

    /// The bus address of a byte of the destination.
    pub(super) fn destination(&self, offset: usize) -> u32 {
        self.destination.at(offset)
    }

    /// Puts a channel's program where the device reads it, and returns its bus address.
    pub(super) fn program(&self, channel: u8, program: &[u8]) -> u32 {
        let place = usize::from(channel) * PROGRAM_MAX;
        self.programs.memory.write(place, program);
        self.programs.at(place)
    }

    /// Fills where a transfer will write, and around it, with what it can't leave there.
    pub(super) fn spoil(&self, from: usize, to: usize, length: usize) {
        let memory = &self.destination.memory;
        memory.write(to.saturating_sub(MARGIN), part(&self.complement, 0, MARGIN));
        memory.write(to, part(&self.complement, from, length));
        memory.write(to + length, part(&self.complement, 0, MARGIN));
    }

    /// Checks every byte of a transfer, and those around it; says which are wrong.
    #[cold]
    pub(super) fn verify(&self, from: usize, to: usize, length: usize) -> Result<(), String> {
        let margin = part(&self.complement, 0, MARGIN);
        for (what, at, expected) in [
            ("before it", to.saturating_sub(MARGIN), margin),
            ("of it", to, part(&self.pattern, from, length)),
            ("behind it", to + length, margin),
        ] {
            let found = self.destination.memory.read(at, expected.len());
            if found == expected {
                continue;
            }
            let mut pairs = found.iter().zip(expected);
            let first = pairs.clone().position(|(a, b)| a != b).unwrap_or(found.len());
            let count = pairs.by_ref().filter(|(a, b)| a != b).count();
            return Err(format!("{count} bytes {what} are wrong, the first is number {first}"));
        }
        Ok(())
    }
}

impl Buffer {
    fn new(test: &mut SelfTest, size: usize) -> Result<Self, SelfTestError> {
        let (memory, iova) = test.memory(size)?;
        Ok(Self { memory, iova: narrow(iova)? })
    }

    fn at(&self, offset: usize) -> u32 {
        self.iova.saturating_add(u32::try_from(offset).unwrap_or(0))
    }
}

/// `length` bytes of a pattern.
fn part(pattern: &[u8], from: usize, length: usize) -> &[u8] {
    pattern.get(from..from.saturating_add(length)).unwrap_or_default()
}

/// The controller has 32 bits of address.
fn narrow(iova: u64) -> Result<u32, SelfTestError> {
    u32::try_from(iova).map_err(|_| SelfTestError::NoIova { size: iova })
}

/// Bytes that no shift or repetition of themselves matches: a 32-bit xorshift.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    let words = length.div_ceil(4);
    let mut bytes: Vec<u8> = (0..words).flat_map(|_| next()).collect();
    bytes.truncate(length);
    bytes
}
