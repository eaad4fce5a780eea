//! Tables of descriptors (virtio 1.2, 2.7.5): what a driver wrote, read for each chain.
//!
//! The iterator of virtio-queue takes 110 instructions for a descriptor, and ends where a chain is broken
//! without telling why.

use vm_memory::{Bytes, GuestAddress};

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

use crate::virtio::ram::Ram;

/// The size of a descriptor in bytes.
const SIZE: u32 = 16;

/// A descriptor of a buffer.
pub(super) struct Entry {
    /// Where the buffer begins (GPA).
    pub(super) addr: GuestAddress,
    /// Its size in bytes.
    pub(super) len: u32,
    /// The device writes it.
    pub(super) is_writable: bool,
}

/// The descriptors of a chain, those of an indirect table instead of the one that refers to it.
pub(super) struct Entries<'a> {
    ram: &'a Ram,
    /// The table (GPA), and how many descriptors it has.
    table: u64,
    size: u16,
    next: Option<u16>,
    /// How many may follow: no more than the table has.
    left: u16,
    is_indirect: bool,
    bytes: u32,
}

impl<'a> Entries<'a> {
    /// Those of the chain that begins at `head` of a queue's table (GPA) of `size` descriptors.
    pub(super) fn new(ram: &'a Ram, (table, size): (u64, u16), head: u16) -> Self {
        Self { ram, table, size, next: Some(head), left: size, is_indirect: false, bytes: 0 }
    }

    /// The next one; `None` behind the last.
    ///
    /// # Errors
    ///
    /// What is wrong with the chain.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<Option<Entry>, &'static str> {
        loop {
            let Some(index) = self.next else { return Ok(None) };
            if index >= self.size {
                return Err("outside its table");
            }
            if self.left == 0 {
                return Err("endless");
            }
            self.left -= 1;
            let offset = u64::from(index) * u64::from(SIZE);
            let [addr, rest] = self.read(self.table.wrapping_add(offset))?;
            let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
            let len = u32::from_le_bytes([l0, l1, l2, l3]);
            let flags = u32::from(u16::from_le_bytes([f0, f1]));
            if flags & VRING_DESC_F_INDIRECT != 0 {
                self.enter(addr, len)?;
                continue;
            }
            let is_last = flags & VRING_DESC_F_NEXT == 0;
            self.next = if is_last { None } else { Some(u16::from_le_bytes([n0, n1])) };
            // Virtio 1.2, 2.7.5.2.
            self.bytes = self.bytes.checked_add(len).ok_or("of more than 4 GiB")?;
            let is_writable = flags & VRING_DESC_F_WRITE != 0;
            return Ok(Some(Entry { addr: GuestAddress(addr), len, is_writable }));
        }
    }

    /// Goes on in an indirect table of `len` bytes.
    fn enter(&mut self, table: u64, len: u32) -> Result<(), &'static str> {
        if self.is_indirect {
            return Err("of an indirect table within another");
        }
        let whole = Some(len / SIZE).filter(|_| len.is_multiple_of(SIZE));
        let size = whole.and_then(|size| u16::try_from(size).ok());
        self.size = size.ok_or("of an indirect table of no size that it can have")?;
        (self.table, self.left, self.next, self.is_indirect) = (table, self.size, Some(0), true);
        Ok(())
    }

    /// The words of the descriptor at `addr` (GPA).
    #[inline(always)]
    fn read(&self, addr: u64) -> Result<[u64; 2], &'static str> {
        match self.ram.words(GuestAddress(addr)) {
            Some(words) => Ok(words),
            None => self.read_anywhere(addr),
        }
    }

    #[cold]
    fn read_anywhere(&self, addr: u64) -> Result<[u64; 2], &'static str> {
        let words = self.ram.read_obj::<[u64; 2]>(GuestAddress(addr));
        words.map(|words| words.map(u64::from_le)).map_err(|_| "of a table outside guest RAM")
    }
}
