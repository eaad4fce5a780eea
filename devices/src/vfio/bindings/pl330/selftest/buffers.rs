//! The memory of transfers: programs, what they copy and where to.

use std::sync::Arc;

use super::super::program::MAX_PROGRAM_SIZE;
use crate::vfio::selftest::{DmaBuffer, SelfTest, SelfTestError};

/// Bytes on both sides of a transfer that it must leave alone; where the first one begins.
pub(super) const MARGIN: usize = 64;

/// Room for a program of each channel, a source full of a pattern and a destination; and an address
/// at which nothing is mapped.
pub(super) struct TransferBuffers {
    programs: Buffer,
    source: Buffer,
    destination: Buffer,
    unmapped: u32,
    /// What the source holds.
    pattern: Vec<u8>,
    /// What the destination holds before: no byte is right by chance.
    complement: Vec<u8>,
}

/// A buffer and its bus address.
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
        let programs = Buffer::new(test, MAX_PROGRAM_SIZE * usize::from(channels))?;
        let (source, destination) = (Buffer::new(test, size)?, Buffer::new(test, size)?);
        let unmapped = bus_address(test.free_iova(1 << 20)?)?;
        let pattern = pattern(size);
        source.memory.write(0, &pattern);
        let complement = pattern.iter().map(|byte| !byte).collect();
        Ok(Self { programs, source, destination, unmapped, pattern, complement })
    }

    /// The bus address at which nothing is mapped.
    pub(super) fn unmapped(&self) -> u32 {
        self.unmapped
    }

    /// The bus address of a byte of the source.
    pub(super) fn source(&self, offset: usize) -> u32 {
        self.source.address(offset)
    }

    /// The bus address of a byte of the destination.
    pub(super) fn destination(&self, offset: usize) -> u32 {
        self.destination.address(offset)
    }

    /// Writes a channel's program where the device reads it, and returns its bus address.
    pub(super) fn write_program(&self, channel: u8, program: &[u8]) -> u32 {
        let offset = usize::from(channel) * MAX_PROGRAM_SIZE;
        self.programs.memory.write(offset, program);
        self.programs.address(offset)
    }

    /// Fills the destination of a transfer, and its margins, with what the transfer can't leave there.
    pub(super) fn clear(&self, from: usize, to: usize, length: usize) {
        let memory = &self.destination.memory;
        memory.write(to.saturating_sub(MARGIN), part(&self.complement, 0, MARGIN));
        memory.write(to, part(&self.complement, from, length));
        memory.write(to + length, part(&self.complement, 0, MARGIN));
    }

    /// Whether the destination still holds what [`clear`](Self::clear) put there, for a transfer from
    /// the same offset.
    pub(super) fn is_clear(&self, at: usize, length: usize) -> bool {
        self.destination.memory.read(at, length) == part(&self.complement, at, length)
    }

    /// Verifies every byte of a transfer, and its margins; fails with which are wrong.
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
            let wrong = || found.iter().zip(expected).enumerate().filter(|(_, (a, b))| a != b);
            let first = wrong().next().map_or(found.len(), |(number, _)| number);
            let count = wrong().count();
            return Err(format!("{count} bytes {what} are wrong, the first is number {first}"));
        }
        Ok(())
    }
}

impl Buffer {
    fn new(test: &mut SelfTest, size: usize) -> Result<Self, SelfTestError> {
        let (memory, iova) = test.dma_buffer(size)?;
        Ok(Self { memory, iova: bus_address(iova)? })
    }

    fn address(&self, offset: usize) -> u32 {
        self.iova.saturating_add(u32::try_from(offset).unwrap_or(0))
    }
}

/// `length` bytes of a pattern.
fn part(pattern: &[u8], from: usize, length: usize) -> &[u8] {
    pattern.get(from..from.saturating_add(length)).unwrap_or_default()
}

/// The controller has 32 bits of address.
fn bus_address(iova: u64) -> Result<u32, SelfTestError> {
    u32::try_from(iova).map_err(|_| SelfTestError::NoIova(iova))
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
