//! The MSI-X capability with its table (PCI Local Bus 3.0, 6.8.2).

use super::message::{Delivery, Effect, effects};
use super::register::{change, merge};
use crate::irq::MsiMessage;

/// Bits of message control: on; all vectors masked; the last vector's number.
const ENABLE: u32 = 1 << 15;
const FUNCTION_MASK: u32 = 1 << 14;
const LAST_VECTOR: u32 = (1 << 11) - 1;

/// An entry of the table in bytes: message address, upper address, data and vector control.
const ENTRY: u64 = 16;
/// The vector is masked: in vector control.
const VECTOR_MASK: u32 = 1;

/// Where the table or the pending bits are in a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePlace {
    /// Which BAR: 0 to 5 (6 and 7 are reserved).
    pub bar: u8,
    /// The offset in it, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl TablePlace {
    /// The offset in it of an access of `len` bytes at `offset` of BAR `bar` that lies within.
    pub fn find(&self, bar: u8, offset: u64, len: usize) -> Option<u64> {
        let within = offset.checked_sub(self.offset).filter(|_| bar == self.bar)?;
        let end = within.checked_add(u64::try_from(len).ok()?)?;
        (end <= self.size).then_some(within)
    }
}

/// The MSI-X capability of a function, its table and its pending bits, as its guest programs them.
///
/// A write says what it [changed](Effect); nothing is done here. Whoever has the device keeps what a
/// masked vector signals, and says so when its pending bits are read.
#[derive(Debug)]
pub struct Msix {
    /// The three dwords of the structure.
    structure: [u32; 3],
    entries: Vec<Entry>,
    requester: u32,
}

/// An entry of the table: its dwords.
#[derive(Clone, Copy, Debug)]
struct Entry([u32; 4]);

/// An entry as a reset leaves it: masked (6.8.2.9).
const RESET: Entry = Entry([0, 0, 0, VECTOR_MASK]);

impl Msix {
    /// The size of the capability's structure in bytes.
    pub const SIZE: u16 = 12;

    /// The capability whose structure (id, next, message control; table; pending bits) reads so on
    /// the device; it is off. `requester` is the function's requester ID in the guest.
    pub fn new(structure: [u32; 3], requester: u16) -> Self {
        let [first, table, pending] = structure;
        let structure = [first & !((ENABLE | FUNCTION_MASK) << 16), table, pending];
        let vectors = (first >> 16 & LAST_VECTOR) as usize + 1;
        Self { structure, entries: vec![RESET; vectors], requester: u32::from(requester) }
    }

    /// How many vectors there are: 1 to 2048.
    pub fn capacity(&self) -> u16 {
        u16::try_from(self.entries.len()).unwrap_or(u16::MAX)
    }

    /// Where the table is.
    pub fn table(&self) -> TablePlace {
        let [_, table, _] = self.structure;
        place(table, u64::from(self.capacity()) * ENTRY)
    }

    /// Where the pending bits are: in quadwords.
    pub fn pending_bits(&self) -> TablePlace {
        let [.., pending] = self.structure;
        place(pending, u64::from(self.capacity()).div_ceil(64) * 8)
    }

    /// Reads 1, 2 or 4 bytes at `offset` of the structure, aligned.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        super::register::read(
            self.structure.map(u32::to_le_bytes).as_flattened(),
            offset.into(),
            data,
        );
    }

    /// Writes 1, 2 or 4 bytes at `offset` of the structure, aligned. All but two bits is read-only.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Vec<Effect> {
        if offset >= 4 {
            return Vec::new();
        }
        let before = self.deliveries();
        let [control, ..] = &mut self.structure;
        let new = merge(*control, usize::from(offset), data);
        *control = change(*control, new, (ENABLE | FUNCTION_MASK) << 16);
        effects(before.as_deref(), self.deliveries().as_deref())
    }

    /// Reads at `offset` of the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let entry = self.entries.get(index(offset / ENTRY));
        let dwords = entry.map_or([0; 4], |Entry(dwords)| *dwords).map(u32::to_le_bytes);
        super::register::read(dwords.as_flattened(), offset % ENTRY, data);
    }

    /// Writes 4 or 8 bytes at `offset` of the table, aligned; software makes no others (6.8.2), and
    /// they are ignored.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Vec<Effect> {
        let vector = index(offset / ENTRY);
        let size = data.len() as u64;
        let aligned = matches!(size, 4 | 8) && offset.is_multiple_of(size);
        let before = self.delivery(vector).filter(|_| aligned);
        let (Some(before), Some(Entry(dwords))) = (before, self.entries.get_mut(vector)) else {
            return Vec::new();
        };
        let first = index(offset % ENTRY / 4);
        for (dword, bytes) in dwords.iter_mut().skip(first).zip(data.as_chunks().0) {
            *dword = u32::from_le_bytes(*bytes);
        }
        let [address, .., control] = dwords;
        // A dword's address; the rest of vector control is reserved.
        *address &= !0b11;
        *control &= VECTOR_MASK;
        let after = self.delivery(vector).filter(|after| self.is_enabled() && *after != before);
        let effect = after.zip(u16::try_from(vector).ok());
        effect.map(|(delivery, vector)| Effect::Delivery { vector, delivery }).into_iter().collect()
    }

    /// Reads at `offset` of the pending bits, which can't be written; `pending` tells whether a
    /// vector has signalled while it was masked.
    pub fn read_pending(&self, offset: u64, data: &mut [u8], pending: impl Fn(u16) -> bool) {
        for (byte, offset) in data.iter_mut().zip(offset..) {
            let held = |bit: &u64| {
                let vector = offset.checked_mul(8).and_then(|first| first.checked_add(*bit));
                let vector = vector.and_then(|vector| u16::try_from(vector).ok());
                vector.is_some_and(|vector| self.is_held(vector) && pending(vector))
            };
            *byte = (0..8).filter(held).fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    /// As a reset of the function does.
    pub fn reset(&mut self) -> Vec<Effect> {
        let effects = self.write(2, &[0, 0]);
        self.entries.fill(RESET);
        effects
    }

    fn is_enabled(&self) -> bool {
        self.structure[0] >> 16 & ENABLE != 0
    }

    /// Whether signals of a vector are kept back.
    fn is_held(&self, vector: u16) -> bool {
        self.is_enabled() && self.delivery(vector.into()) == Some(Delivery::Masked)
    }

    /// What a vector's signals are while it is on.
    fn delivery(&self, vector: usize) -> Option<Delivery> {
        let Entry([address, upper, data, control]) = *self.entries.get(vector)?;
        let masked = control & VECTOR_MASK != 0 || self.structure[0] >> 16 & FUNCTION_MASK != 0;
        let address = u64::from(upper) << 32 | u64::from(address);
        let message = MsiMessage { address, data, requester: self.requester };
        Some(if masked { Delivery::Masked } else { Delivery::To(message) })
    }

    /// What each vector's signals are; `None` while it is off.
    fn deliveries(&self) -> Option<Vec<Delivery>> {
        let all = (0..self.entries.len()).filter_map(|vector| self.delivery(vector));
        self.is_enabled().then(|| all.collect())
    }
}

/// What a register says of the place of something of `size` bytes: the offset, and the BAR in the
/// low bits (6.8.2.4).
fn place(register: u32, size: u64) -> TablePlace {
    let [low, ..] = register.to_le_bytes();
    TablePlace { bar: low & 0b111, offset: u64::from(register & !0b111), size }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
