//! Tables of descriptors (virtio 1.2, 2.7.5): what a driver wrote, read for each chain.
//!
//! The iterator of virtio-queue takes 110 instructions for a descriptor, and ends where a chain is broken
//! without telling why.

use vm_memory::{Bytes, GuestAddress};

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

use crate::virtio::ram::{Ram, Table};

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
    /// The table (GPA), how many descriptors it has, and where all of it is mapped, if it is in one piece.
    table: u64,
    size: u16,
    host: Option<Table<'a>>,
    next: u16,
    has_next: bool,
    /// How many may follow: no more than the table has.
    left: u16,
    is_indirect: bool,
    bytes: u32,
}

impl<'a> Entries<'a> {
    /// Those of the chain that begins at `head` of a queue's table (GPA) of `size` descriptors.
    pub(super) fn new(ram: &'a Ram, (table, size): (u64, u16), head: u16) -> Self {
        let host = ram.table(GuestAddress(table), size);
        let (next, has_next, left) = (head, true, size);
        Self { ram, table, size, host, next, has_next, left, is_indirect: false, bytes: 0 }
    }

    /// Whether there is a next one, which there is at first.
    pub(super) fn has_next(&self) -> bool {
        self.has_next
    }

    /// The next one.
    ///
    /// # Errors
    ///
    /// What is wrong with the chain.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<Entry, &'static str> {
        loop {
            let index = self.next;
            if index >= self.size {
                return Err("outside its table");
            }
            if self.left == 0 {
                return Err("endless");
            }
            self.left -= 1;
            let words = match self.host.as_ref().and_then(|table| table.words(index)) {
                Some(words) => words,
                None => self.read_anywhere(index)?,
            };
            let [addr, rest] = words;
            let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
            let len = u32::from_le_bytes([l0, l1, l2, l3]);
            let flags = u32::from(u16::from_le_bytes([f0, f1]));
            if flags & VRING_DESC_F_INDIRECT != 0 {
                self.enter(addr, len)?;
                continue;
            }
            self.has_next = flags & VRING_DESC_F_NEXT != 0;
            self.next = u16::from_le_bytes([n0, n1]);
            // Virtio 1.2, 2.7.5.2.
            self.bytes = self.bytes.checked_add(len).ok_or("of more than 4 GiB")?;
            let is_writable = flags & VRING_DESC_F_WRITE != 0;
            return Ok(Entry { addr: GuestAddress(addr), len, is_writable });
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
        self.host = self.ram.table(GuestAddress(table), self.size);
        (self.table, self.left, self.next, self.is_indirect) = (table, self.size, 0, true);
        Ok(())
    }

    /// The words of a descriptor of a table that isn't mapped in one piece.
    #[cold]
    fn read_anywhere(&self, index: u16) -> Result<[u64; 2], &'static str> {
        let addr = self.table.wrapping_add(u64::from(index) * u64::from(SIZE));
        let words = self.ram.read_obj::<[u64; 2]>(GuestAddress(addr));
        words.map(|words| words.map(u64::from_le)).map_err(|_| "of a table outside guest RAM")
    }
}
