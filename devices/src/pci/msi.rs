//! The MSI capability (PCI Local Bus 3.0, 6.8.1).

use super::message::{Delivery, Effect, effects};
use super::register::{change, merge};
use crate::irq::MsiMessage;

/// Bits of message control: on; how many vectors are used (log2); 64 address bits; each vector can
/// be masked.
const ENABLE: u32 = 1 << 0;
const MULTIPLE_ENABLE: u32 = 0b111 << 4;
const WIDE: u32 = 1 << 7;
const MASKABLE: u32 = 1 << 8;

/// The most vectors there can be (log2).
const MOST: u32 = 5;

/// The MSI capability of a function, as its guest programs it.
///
/// A write says what it [changed](Effect); nothing is done here. Whoever has the device keeps what a
/// masked vector signals, and says so when its pending bits are read.
#[derive(Debug)]
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
    /// off. `requester` is the function's requester ID in the guest.
    pub fn new(first: u32, requester: u16) -> Self {
        let off = (ENABLE | MULTIPLE_ENABLE) << 16;
        let (address, data, mask) = (0, 0, 0);
        Self { control: first & !off, address, data, mask, requester: u32::from(requester) }
    }

    /// The size of the capability's structure in bytes.
    pub fn size(&self) -> u16 {
        match (self.has(WIDE), self.has(MASKABLE)) {
            (false, false) => 0xa,
            (true, false) => 0xe,
            (false, true) => 0x14,
            (true, true) => 0x18,
        }
    }

    /// How many vectors there are at most.
    pub fn capacity(&self) -> u16 {
        1 << (self.control >> 17 & 0b111).min(MOST)
    }

    /// Reads 1, 2 or 4 bytes at `offset` of the structure, aligned; `pending` tells whether a vector
    /// has signalled while it was masked.
    pub fn read(&self, offset: u16, data: &mut [u8], pending: impl Fn(u16) -> bool) {
        let value = match self.register(offset) {
            Some(Register::Control) => self.control,
            Some(Register::Address) => low(self.address),
            Some(Register::UpperAddress) => low(self.address >> 32),
            Some(Register::Data) => self.data,
            Some(Register::Mask) => self.mask,
            Some(Register::Pending) => self.pending_bits(pending),
            None => 0,
        };
        super::register::read(&value.to_le_bytes(), u64::from(offset % 4), data);
    }

    /// Writes 1, 2 or 4 bytes at `offset` of the structure, aligned.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Vec<Effect> {
        let before = self.deliveries();
        let within = usize::from(offset % 4);
        match self.register(offset) {
            Some(Register::Control) => {
                let new = merge(self.control, within, data);
                self.control = change(self.control, new, (ENABLE | MULTIPLE_ENABLE) << 16);
            }
            Some(Register::Address) => {
                let new = merge(low(self.address), within, data);
                // A dword's address.
                self.address = self.address & !0xffff_ffff | u64::from(new & !0b11);
            }
            Some(Register::UpperAddress) => {
                let new = merge(low(self.address >> 32), within, data);
                self.address = u64::from(new) << 32 | u64::from(low(self.address));
            }
            Some(Register::Data) => self.data = merge(self.data, within, data) & 0xffff,
            Some(Register::Mask) => {
                let new = merge(self.mask, within, data);
                self.mask = change(self.mask, new, ones(self.capacity()));
            }
            Some(Register::Pending) | None => (),
        }
        effects(before.as_deref(), self.deliveries().as_deref())
    }

    /// As a reset of the function does.
    pub fn reset(&mut self) -> Vec<Effect> {
        let before = self.deliveries();
        let first = self.control;
        *self = Self { requester: self.requester, ..Self::new(first, 0) };
        effects(before.as_deref(), None)
    }

    fn has(&self, bit: u32) -> bool {
        self.control >> 16 & bit != 0
    }

    fn register(&self, offset: u16) -> Option<Register> {
        // Where the upper half of the address is missing, the rest moves up.
        let moved = if self.has(WIDE) || offset < 8 { 0 } else { 4 };
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

    fn pending_bits(&self, pending: impl Fn(u16) -> bool) -> u32 {
        let Some(deliveries) = self.deliveries() else { return 0 };
        let held = (0u16..).zip(deliveries).filter(|(_, delivery)| *delivery == Delivery::Masked);
        held.filter(|(vector, _)| pending(*vector)).fold(0, |bits, (vector, _)| bits | 1 << vector)
    }

    /// What each vector's signals are; `None` while it is off.
    fn deliveries(&self) -> Option<Vec<Delivery>> {
        if !self.has(ENABLE) {
            return None;
        }
        // Using more than there are is reserved.
        let used = 1u32.unbounded_shl(self.control >> 20 & 0b111).min(self.capacity().into());
        let delivery = |vector: u32| {
            let masked = self.has(MASKABLE) && self.mask >> vector & 1 != 0;
            // Vectors differ in the low bits of the data.
            let data = self.data & !(used - 1) | vector;
            let message = MsiMessage { address: self.address, data, requester: self.requester };
            if masked { Delivery::Masked } else { Delivery::To(message) }
        };
        Some((0..used).map(delivery).collect())
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

/// As many ones as there are vectors.
fn ones(vectors: u16) -> u32 {
    1u32.checked_shl(vectors.into()).map_or(u32::MAX, |bit| bit - 1)
}

fn low(value: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    {
        value as u32
    }
}

#[cfg(test)]
mod tests;
