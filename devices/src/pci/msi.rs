//! The MSI capability (PCI Local Bus 3.0, 6.8.1).

use super::config::{change, halves, merge, read};
use super::vectors::MsiState;
use crate::irq::MsiMessage;

/// Bits of message control: on; how many vectors are used (log2); 64 address bits; each vector can
/// be masked.
const ENABLE: u32 = 1 << 0;
const MULTIPLE_ENABLE: u32 = 0b111 << 4;
const ADDRESS_64: u32 = 1 << 7;
const MASKABLE: u32 = 1 << 8;

/// The largest number of vectors (log2).
const MAX_VECTORS_LOG2: u32 = 5;

/// The MSI capability of a function, as its guest programs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// The capability's id, the pointer to the next, and message control: the first dword.
    control: u32,
    address: u64,
    data: u32,
    mask: u32,
    requester: u32,
}

impl Msi {
    /// The capability whose first dword (id, next, message control) reads so on the device; it is
    /// disabled. `requester` is the function's requester ID in the guest.
    pub fn new(first: u32, requester: u16) -> Self {
        let off = (ENABLE | MULTIPLE_ENABLE) << 16;
        let (address, data, mask) = (0, 0, 0);
        Self { control: first & !off, address, data, mask, requester: u32::from(requester) }
    }

    /// The size of the capability's structure in bytes.
    pub fn size(&self) -> u16 {
        match (self.has(ADDRESS_64), self.has(MASKABLE)) {
            (false, false) => 0xa,
            (true, false) => 0xe,
            (false, true) => 0x14,
            (true, true) => 0x18,
        }
    }

    /// The function has this requester ID in the guest from here on.
    pub fn set_requester(&mut self, requester: u16) {
        self.requester = requester.into();
    }

    /// The largest number of vectors that can be enabled: 1 to 32.
    pub fn capacity(&self) -> u16 {
        1 << (self.control >> 17 & 0b111).min(MAX_VECTORS_LOG2)
    }

    /// Reads 1, 2 or 4 bytes at `offset` of the structure, aligned. `pending` tells whether a vector
    /// was signalled while it was masked.
    pub fn read(&self, offset: u16, data: &mut [u8], pending: impl Fn(u16) -> bool) {
        let [low, high] = halves(self.address);
        let value = match self.register(offset) {
            Some(Register::Control) => self.control,
            Some(Register::Address) => low,
            Some(Register::UpperAddress) => high,
            Some(Register::Data) => self.data,
            Some(Register::Mask) => self.mask,
            Some(Register::Pending) => (0..self.enabled_vectors())
                .filter(|vector| self.message(*vector).is_none() && pending(*vector))
                .fold(0, |bits, vector| bits | 1 << vector),
            None => 0,
        };
        read(&value.to_le_bytes(), u64::from(offset % 4), data);
    }

    /// Writes 1, 2 or 4 bytes at `offset` of the structure, aligned. Whether its
    /// [state](MsiState) may have changed.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> bool {
        let before = *self;
        let written = |register| merge(register, usize::from(offset % 4), data);
        let [low, high] = halves(self.address);
        match self.register(offset) {
            Some(Register::Control) => {
                let writable = (ENABLE | MULTIPLE_ENABLE) << 16;
                self.control = change(self.control, written(self.control), writable);
            }
            // A dword's address.
            Some(Register::Address) => self.address = join(written(low) & !0b11, high),
            Some(Register::UpperAddress) => self.address = join(low, written(high)),
            Some(Register::Data) => self.data = written(self.data) & 0xffff,
            Some(Register::Mask) => {
                let vectors = u32::MAX >> (u32::BITS - u32::from(self.capacity()));
                self.mask = change(self.mask, written(self.mask), vectors);
            }
            Some(Register::Pending) | None => (),
        }
        *self != before && (self.has(ENABLE) || before.has(ENABLE))
    }

    /// Resets it, as a reset of the function does.
    pub fn reset(&mut self) {
        *self = Self { requester: self.requester, ..Self::new(self.control, 0) };
    }

    fn has(&self, bit: u32) -> bool {
        self.control >> 16 & bit != 0
    }

    fn register(&self, offset: u16) -> Option<Register> {
        // Without an upper half of the address, the rest moves up.
        let moved = if self.has(ADDRESS_64) || offset < 8 { 0 } else { 4 };
        match (offset & !3) + moved {
            0x00 => Some(Register::Control),
            0x04 => Some(Register::Address),
            0x08 => Some(Register::UpperAddress),
            0x0c => Some(Register::Data),
            0x10 if self.has(MASKABLE) => Some(Register::Mask),
            0x14 if self.has(MASKABLE) => Some(Register::Pending),
            _ => None,
        }
    }
}

impl MsiState for Msi {
    fn enabled_vectors(&self) -> u16 {
        // More than there are is reserved.
        let used = 1u16.unbounded_shl(self.control >> 20 & 0b111).min(self.capacity());
        if self.has(ENABLE) { used } else { 0 }
    }

    fn message(&self, vector: u16) -> Option<MsiMessage> {
        let used = u32::from(self.enabled_vectors()).max(1);
        // Vectors differ in the low bits of the data.
        let data = self.data & !(used - 1) | u32::from(vector);
        let masked = self.has(MASKABLE) && self.mask.unbounded_shr(vector.into()) & 1 != 0;
        let message = MsiMessage { address: self.address, data, requester: self.requester };
        (!masked).then_some(message)
    }
}

/// The registers of the structure.
enum Register {
    Control,
    Address,
    UpperAddress,
    Data,
    Mask,
    Pending,
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests;
