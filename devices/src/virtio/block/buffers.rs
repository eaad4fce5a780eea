//! Parts of guest RAM as `preadv` takes them: data goes from the file into RAM without a copy between.

use std::ptr;

use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::virtio::Descriptor;
use crate::virtio::ram::Ram;

/// The most parts that one system call takes (`UIO_MAXIOV` of Linux' include/uapi/linux/uio.h).
const MAX_PARTS: usize = 1024;

/// Parts of guest RAM, one behind the other, of which the first may be done already.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    parts: Vec<libc::iovec>,
    done: usize,
    left: u64,
}

// SAFETY: the addresses are those of guest RAM, which stays mapped as long as the queue that they came
// from has it, and which any thread may access.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Makes these buffers of guest RAM its parts. `false` if they aren't all there, which a chain's
    /// are.
    pub(super) fn set(&mut self, ram: &Ram, of: &[Descriptor]) -> bool {
        self.clear();
        self.parts.reserve(of.len());
        for Descriptor { addr, len } in of {
            let bytes = usize::try_from(*len).unwrap_or(usize::MAX);
            if let Some(host) = ram.host(*addr, bytes) {
                self.push(libc::iovec { iov_base: host.cast(), iov_len: bytes });
            } else if !self.push_anywhere(ram, *addr, bytes) {
                return false;
            }
        }
        true
    }

    /// Adds a buffer of several regions of RAM, or of one that isn't the first; `false` if it isn't there.
    #[cold]
    fn push_anywhere(&mut self, ram: &Ram, addr: GuestAddress, bytes: usize) -> bool {
        let Ok(slices) = ram.get_slices(addr, bytes, Permissions::ReadWrite) else {
            return false;
        };
        for slice in slices {
            let Ok(slice) = slice else { return false };
            let iov_base = slice.ptr_guard_mut().as_ptr().cast();
            self.push(libc::iovec { iov_base, iov_len: slice.len() });
        }
        true
    }

    /// Has no parts any more.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.done = 0;
        self.left = 0;
    }

    /// Whether it never had a part.
    pub(super) fn is_unused(&self) -> bool {
        self.parts.capacity() == 0
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Those parts that are left, as many as a system call takes.
    pub(super) fn parts(&self) -> &[libc::iovec] {
        let left = self.parts.get(self.done..).unwrap_or_default();
        left.get(..MAX_PARTS).unwrap_or(left)
    }

    /// Whether all of these parts start and end at a multiple of this.
    pub(super) fn are_aligned(&self, alignment: usize) -> bool {
        self.parts().iter().all(|part| {
            part.iov_base.addr().is_multiple_of(alignment) && part.iov_len.is_multiple_of(alignment)
        })
    }

    /// These bytes, from the first that is left on, are done.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes as u64);
        if self.left == 0 {
            self.done = self.parts.len();
            return;
        }
        let mut bytes = bytes;
        while bytes > 0 {
            let Some(part) = self.parts.get_mut(self.done) else { return };
            if bytes < part.iov_len {
                part.iov_base = part.iov_base.wrapping_byte_add(bytes);
                part.iov_len -= bytes;
                return;
            }
            bytes -= part.iov_len;
            self.done += 1;
        }
    }

    /// Keeps only the first `bytes` of those that are left.
    pub(super) fn truncate(&mut self, bytes: u64) {
        // From the end on: mostly it is a status' byte that goes.
        while let Some(beyond) = self.left.checked_sub(bytes).filter(|beyond| *beyond > 0) {
            let Some(last) = self.parts.last_mut() else { return };
            let take = beyond.min(last.iov_len as u64);
            last.iov_len -= usize::try_from(take).unwrap_or(last.iov_len);
            self.left -= take;
            if last.iov_len == 0 {
                self.parts.pop();
            }
        }
    }

    /// Makes the same parts of `other`.
    pub(super) fn copy_to(&self, other: &mut Self) {
        other.parts.clear();
        other.parts.extend_from_slice(self.parts.get(self.done..).unwrap_or_default());
        (other.done, other.left) = (0, self.left);
    }

    /// Copies `from` into what is left, and what it covers is done.
    ///
    /// # Safety
    ///
    /// Guest RAM is mapped.
    pub(super) unsafe fn write(&mut self, from: &[u8]) {
        let mut from = from;
        while let Some(part) = self.parts().first().filter(|_| !from.is_empty()) {
            let bytes = part.iov_len.min(from.len());
            // SAFETY: the part is guest RAM, which the caller says is mapped and no reference of Rust
            // is to; `from` has as many bytes.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), part.iov_base.cast(), bytes) };
            self.advance(bytes);
            from = from.get(bytes..).unwrap_or_default();
        }
    }

    /// Copies what is left into `to`, as much as it takes, and what is copied is done.
    ///
    /// # Safety
    ///
    /// Guest RAM is mapped.
    pub(super) unsafe fn read(&mut self, to: &mut [u8]) {
        let mut to = to;
        while let Some(part) = self.parts().first().filter(|_| !to.is_empty()) {
            let bytes = part.iov_len.min(to.len());
            let (now, rest) = to.split_at_mut(bytes);
            // SAFETY: as in `write`.
            unsafe { ptr::copy_nonoverlapping(part.iov_base.cast(), now.as_mut_ptr(), bytes) };
            self.advance(bytes);
            to = rest;
        }
    }

    /// Adds a part, to the last one if that ends where it starts.
    #[inline(always)]
    fn push(&mut self, part: libc::iovec) {
        self.left += part.iov_len as u64;
        match self.parts.last_mut() {
            Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == part.iov_base => {
                last.iov_len += part.iov_len;
            }
            _ => self.parts.push(part),
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    fn memory() -> GuestMemoryMmap {
        let ranges = [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000)];
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    fn lengths(buffers: &Buffers) -> Vec<usize> {
        buffers.parts().iter().map(|part| part.iov_len).collect()
    }

    #[test]
    fn a_buffer_over_two_regions_of_ram_is_two_parts() {
        let (memory, mut buffers) = (memory(), Buffers::default());
        let ram = Ram::new(memory.clone());
        let at = |addr, len| Descriptor { addr: GuestAddress(addr), len };
        assert!(buffers.set(&ram, &[at(0x1800, 0x1000), at(0x1000, 16)]));
        assert_eq!((lengths(&buffers), buffers.left()), (vec![0x800, 0x800, 16], 0x1010));
        assert!(buffers.are_aligned(16) && !buffers.are_aligned(32));
        for outside in [at(0x2fff, 2), at(0, 1), at(u64::MAX, 1), at(0x1000, u32::MAX)] {
            assert!(!buffers.set(&ram, &[outside]), "{outside:?}");
        }
    }

    #[test]
    fn what_is_done_is_left_out() {
        let (memory, mut buffers) = (memory(), Buffers::default());
        let ram = Ram::new(memory.clone());
        let at = |addr, len| Descriptor { addr: GuestAddress(addr), len };
        assert!(buffers.set(&ram, &[at(0x1000, 100), at(0x2000, 50)]));
        buffers.advance(30);
        assert_eq!((lengths(&buffers), buffers.left()), (vec![70, 50], 120));
        buffers.advance(70);
        assert_eq!((lengths(&buffers), buffers.left()), (vec![50], 50));
        let mut other = Buffers::default();
        buffers.copy_to(&mut other);
        other.truncate(20);
        assert_eq!((lengths(&other), other.left()), (vec![20], 20));
        buffers.advance(1000);
        assert_eq!((lengths(&buffers), buffers.left()), (vec![], 0));
        other.truncate(0);
        assert_eq!((lengths(&other), other.left()), (vec![], 0));
    }

    #[test]
    fn bytes_go_to_the_parts_and_come_from_them() {
        let (memory, mut buffers) = (memory(), Buffers::default());
        let ram = Ram::new(memory.clone());
        let at = |addr, len| Descriptor { addr: GuestAddress(addr), len };
        let parts = [at(0x1ffe, 4), at(0x1000, 2)];
        assert!(buffers.set(&ram, &parts));
        // SAFETY: `memory` is mapped.
        unsafe { buffers.write(b"abcdefgh") };
        assert_eq!(memory.read_obj::<[u8; 2]>(GuestAddress(0x1000)).unwrap(), *b"ef");
        assert!(buffers.set(&ram, &parts));
        let mut back = [0; 5];
        // SAFETY: `memory` is mapped.
        unsafe { buffers.read(&mut back) };
        assert_eq!((&back, buffers.left()), (b"abcde", 1));
    }
}
