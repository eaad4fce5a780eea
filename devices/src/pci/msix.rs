//! The MSI-X capability with its table (PCI Local Bus 3.0, 6.8.2).

use super::config::{change, merge, read};
use super::vectors::MsiState;
use crate::irq::MsiMessage;

/// Bits of message control: enabled; all vectors masked; the last vector's number.
const ENABLE: u32 = 1 << 15;
const FUNCTION_MASK: u32 = 1 << 14;
const LAST_VECTOR: u32 = (1 << 11) - 1;

/// An entry of the table in bytes: message address, upper address, data and vector control.
const ENTRY: u64 = 16;
/// The vector is masked: in vector control.
const VECTOR_MASK: u32 = 1;

/// The part of a BAR that is the table, or the pending bit array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixArea {
    /// Which BAR: 0 to 5 (6 and 7 are reserved).
    pub bar: u8,
    /// Its offset in the BAR, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl MsixArea {
    /// The offset in it of an access of `len` bytes at `offset` of BAR `bar`, if it covers all of it.
    pub fn find(&self, bar: u8, offset: u64, len: usize) -> Option<u64> {
        let within = offset.checked_sub(self.offset).filter(|_| bar == self.bar)?;
        let end = within.checked_add(u64::try_from(len).ok()?)?;
        (end <= self.size).then_some(within)
    }
}

/// The MSI-X capability of a function, its table and its pending bits, as its guest programs them.
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
    /// the device; it is disabled. `requester` is the function's requester ID in the guest.
    pub fn new(structure: [u32; 3], requester: u16) -> Self {
        let [first, table, pending] = structure;
        let structure = [first & !((ENABLE | FUNCTION_MASK) << 16), table, pending];
        let vectors = (first >> 16 & LAST_VECTOR) as usize + 1;
        Self { structure, entries: vec![RESET; vectors], requester: u32::from(requester) }
    }

    /// The function has this requester ID in the guest from here on.
    pub fn set_requester(&mut self, requester: u16) {
        self.requester = requester.into();
    }

    /// The number of vectors: 1 to 2048.
    pub fn capacity(&self) -> u16 {
        u16::try_from(self.entries.len()).unwrap_or(u16::MAX)
    }

    /// The table.
    pub fn table(&self) -> MsixArea {
        let [_, table, _] = self.structure;
        area(table, u64::from(self.capacity()) * ENTRY)
    }

    /// The pending bit array, which is made of quadwords.
    pub fn pending_bits(&self) -> MsixArea {
        let [.., pending] = self.structure;
        area(pending, u64::from(self.capacity()).div_ceil(64) * 8)
    }

    /// Reads 1, 2 or 4 bytes at `offset` of the structure, aligned.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        read(self.structure.map(u32::to_le_bytes).as_flattened(), offset.into(), data);
    }

    /// Writes 1, 2 or 4 bytes at `offset` of the structure, aligned: all but two bits are read-only.
    /// Whether its [state](MsiState) has changed.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> bool {
        let [control, ..] = &mut self.structure;
        if offset >= 4 {
            return false;
        }
        let before = *control;
        let new = merge(before, usize::from(offset), data);
        *control = change(before, new, (ENABLE | FUNCTION_MASK) << 16);
        *control != before && (*control | before) >> 16 & ENABLE != 0
    }

    /// Reads at `offset` of the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let entry = self.entries.get(index(offset / ENTRY));
        let dwords = entry.map_or([0; 4], |Entry(dwords)| *dwords).map(u32::to_le_bytes);
        read(dwords.as_flattened(), offset % ENTRY, data);
    }

    /// Writes 4 or 8 bytes at `offset` of the table, aligned; software makes no other accesses
    /// (6.8.2), and they are ignored. Answers the vector whose message has changed.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Option<u16> {
        let size = data.len() as u64;
        if !matches!(size, 4 | 8) || !offset.is_multiple_of(size) {
            return None;
        }
        let vector = u16::try_from(offset / ENTRY).ok()?;
        let before = self.message(vector);
        let Entry(dwords) = self.entries.get_mut(usize::from(vector))?;
        let first = index(offset % ENTRY / 4);
        for (dword, bytes) in dwords.iter_mut().skip(first).zip(data.as_chunks().0) {
            *dword = u32::from_le_bytes(*bytes);
        }
        let [address, .., control] = dwords;
        // A dword's address; the rest of vector control is reserved.
        *address &= !0b11;
        *control &= VECTOR_MASK;
        (self.has(ENABLE) && self.message(vector) != before).then_some(vector)
    }

    /// Reads at `offset` of the pending bit array, which is read-only. `pending` tells whether a
    /// vector was signalled while it was masked.
    pub fn read_pending(&self, offset: u64, data: &mut [u8], pending: impl Fn(u16) -> bool) {
        for (byte, offset) in data.iter_mut().zip(offset..) {
            let first = offset.checked_mul(8).and_then(|first| u16::try_from(first).ok());
            let held = |bit: &u16| {
                let vector = first.and_then(|first| first.checked_add(*bit));
                vector
                    .filter(|vector| *vector < self.enabled_vectors())
                    .is_some_and(|vector| self.message(vector).is_none() && pending(vector))
            };
            *byte = (0..8).filter(held).fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    /// Resets it, as a reset of the function does.
    pub fn reset(&mut self) {
        self.write(2, &[0, 0]);
        self.entries.fill(RESET);
    }

    fn has(&self, bit: u32) -> bool {
        let [control, ..] = self.structure;
        control >> 16 & bit != 0
    }
}

impl MsiState for Msix {
    fn enabled_vectors(&self) -> u16 {
        if self.has(ENABLE) { self.capacity() } else { 0 }
    }

    fn message(&self, vector: u16) -> Option<MsiMessage> {
        let Entry([address, upper, data, control]) = *self.entries.get(usize::from(vector))?;
        let masked = control & VECTOR_MASK != 0 || self.has(FUNCTION_MASK);
        let address = u64::from(upper) << 32 | u64::from(address);
        (!masked).then_some(MsiMessage { address, data, requester: self.requester })
    }
}

/// The area of `size` bytes that a register locates: its offset, with the BAR's number in the low
/// bits (6.8.2.4).
fn area(register: u32, size: u64) -> MsixArea {
    let [low, ..] = register.to_le_bytes();
    MsixArea { bar: low & 0b111, offset: u64::from(register & !0b111), size }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
