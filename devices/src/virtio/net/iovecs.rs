//! Buffers in guest RAM as readv(2) and writev(2) take them.

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions};

use super::super::queue::Descriptor;
use super::super::ram::Ram;

/// The most pieces that one call takes (`UIO_MAXIOV`).
pub(super) const MAX: usize = 1024;

/// A list of buffers in guest RAM.
#[derive(Debug)]
pub(super) struct IoVecs {
    pieces: Vec<libc::iovec>,
    /// Keeps mapped what they point to.
    ram: Ram,
}

// SAFETY: the pointers are into guest RAM, which `ram` keeps mapped, wherever this is; what any
// thread, or the guest, does there at the same time is seen by the kernel alone, which copies.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// None of this memory.
    pub(super) fn new(memory: GuestMemoryMmap) -> Self {
        Self { pieces: Vec::new(), ram: Ram::new(memory) }
    }

    /// The number of pieces.
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Adds buffers; `false` if one isn't in RAM. Their number grows by one for each, unless one
    /// extends over several of RAM's regions.
    pub(super) fn add(&mut self, buffers: &[Descriptor], access: Permissions) -> bool {
        for Descriptor { addr, len } in buffers {
            let bytes = usize::try_from(*len).unwrap_or(usize::MAX);
            let Ok(slices) = self.ram.get_slices(*addr, bytes, access) else {
                return false;
            };
            for slice in slices {
                let Ok(slice) = slice else { return false };
                let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                self.pieces.push(libc::iovec { iov_base, iov_len: slice.len() });
            }
        }
        true
    }

    /// Forgets all pieces.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
    }

    /// Forgets the first pieces.
    pub(super) fn remove_first(&mut self, count: usize) {
        self.pieces.drain(..count.min(self.pieces.len()));
    }

    /// Writes a byte at this offset of all of them in a row, if they are as long.
    pub(super) fn set(&mut self, offset: usize, value: u8) {
        let mut offset = offset;
        for piece in &self.pieces {
            if let Some(beyond) = offset.checked_sub(piece.iov_len) {
                offset = beyond;
                continue;
            }
            // SAFETY: `offset` is below the piece's length, and the piece is in guest RAM, which is
            // mapped and writable; the guest may access it at the same time, hence volatile.
            unsafe { piece.iov_base.cast::<u8>().add(offset).write_volatile(value) };
            return;
        }
    }

    /// Writes all of them to a file by one call.
    pub(super) fn write_to(&self, file: &impl AsRawFd) -> io::Result<usize> {
        let count = i32::try_from(self.pieces.len()).unwrap_or(i32::MAX);
        // SAFETY: each piece is mapped memory, and there are `count` of them.
        let written = unsafe { libc::writev(file.as_raw_fd(), self.pieces.as_ptr(), count) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Fills them from a file by one call. The number of bytes is larger by one than all of them have
    /// room for if the file had more than that.
    pub(super) fn read_from(&mut self, file: &impl AsRawFd) -> io::Result<usize> {
        let mut beyond = 0u8;
        let iov_base = (&raw mut beyond).cast();
        self.pieces.push(libc::iovec { iov_base, iov_len: 1 });
        let count = i32::try_from(self.pieces.len()).unwrap_or(i32::MAX);
        // SAFETY: each piece is mapped and writable memory, guest RAM or `beyond`, and there are
        // `count` of them.
        let read = unsafe { libc::readv(file.as_raw_fd(), self.pieces.as_ptr(), count) };
        let result = usize::try_from(read).map_err(|_| io::Error::last_os_error());
        self.pieces.pop();
        result
    }
}
