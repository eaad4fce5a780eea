//! Memory that a device under test reads and writes by DMA while this process does.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::super::region::host_page_size;
use super::SelfTestError;

/// Zeroed memory for DMA. It is only copied from and to: there are no references into it, for the
/// device may change it at any time.
#[derive(Debug)]
pub struct DmaBuffer {
    mapping: MmapRegion,
    /// Where in the mapping the buffer begins, in bytes.
    start: usize,
    /// Its size in bytes.
    size: usize,
}

impl DmaBuffer {
    /// At least `size` bytes, made up to whole pages; aligned to the largest power of two within
    /// `size`, so that an IOMMU can use large pages.
    ///
    /// # Errors
    ///
    /// The host has no room for it.
    pub fn new(size: usize) -> Result<Self, SelfTestError> {
        let failed = |error| SelfTestError::NoMemory(size as u64, error);
        let overflow = || failed(io::ErrorKind::InvalidInput.into());
        let page = usize::try_from(host_page_size()).unwrap_or(4096);
        let size = size.max(1).checked_next_multiple_of(page).ok_or_else(overflow)?;
        let alignment = (1_usize << size.ilog2()).max(page);
        let reserved = size.checked_add(alignment).ok_or_else(overflow)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mapping = MmapRegion::build(None, reserved, protection, flags)
            .map_err(|error| failed(io::Error::other(error)))?;
        let start = mapping.as_ptr().align_offset(alignment).min(alignment);
        let buffer = Self { mapping, start, size };
        if let Some(address) = buffer.address() {
            // Only advice: without large pages it works as well.
            // SAFETY: whole pages of the mapping, whose contents stay what they are.
            unsafe { libc::madvise(address.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
        }
        Ok(buffer)
    }

    /// Its host virtual address.
    pub(super) fn address(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.slice(0, self.size)?.ptr_guard_mut().as_ptr())
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Puts bytes at `offset`, where the device sees them; those that don't fit are left out.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let Some(slice) = self.slice(offset, bytes.len()) else { return };
        slice.copy_from(bytes);
        synchronise(&slice);
        fence(Ordering::SeqCst);
    }

    /// The bytes at `offset` as the device left them; fewer than `length` at the end.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let Some(slice) = self.slice(offset, length) else { return Vec::new() };
        let mut bytes = vec![0; slice.len()];
        fence(Ordering::SeqCst);
        synchronise(&slice);
        slice.copy_to(&mut bytes);
        bytes
    }

    fn slice(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>> {
        let length = length.min(self.size.checked_sub(offset)?);
        self.mapping.get_slice(self.start.checked_add(offset)?, length).ok()
    }
}

/// Makes caches and memory agree: a device that isn't coherent sees memory alone. Where it is
/// coherent this changes nothing. (Arm ARM, DC CIVAC and CTR_EL0, which Linux lets processes use.)
#[cfg(target_arch = "aarch64")]
fn synchronise(slice: &VolatileSlice<'_>) {
    let types: u64;
    // SAFETY: reads a register that tells the size of cache lines.
    unsafe { std::arch::asm!("mrs {}, ctr_el0", out(reg) types, options(nomem, nostack)) };
    // DminLine, bits 19:16: the logarithm of the smallest line's words of four bytes.
    let line = 4_usize << (types >> 16 & 0xf);
    let start = slice.ptr_guard().as_ptr().addr();
    for at in (start & !(line - 1)..start.saturating_add(slice.len())).step_by(line) {
        // SAFETY: writes back and drops a cache line of memory that is mapped here: its bytes stay
        // what they are for this process.
        unsafe { std::arch::asm!("dc civac, {}", in(reg) at, options(nostack)) };
    }
    // SAFETY: a barrier.
    unsafe { std::arch::asm!("dsb sy", options(nostack)) };
}

/// Where this crate is built for tests only, no device is.
#[cfg(not(target_arch = "aarch64"))]
fn synchronise(_: &VolatileSlice<'_>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zeroed_and_aligned_and_holds_what_is_written() {
        for size in [1, 4096, 5000, 1 << 21, (1 << 21) + 4096] {
            let buffer = DmaBuffer::new(size).unwrap();
            let alignment = 1_usize << buffer.size().ilog2();
            assert!(buffer.size() >= size as u64);
            let address = buffer.address().unwrap().as_ptr().addr();
            assert!(address.is_multiple_of(alignment), "{size}");
            let last = buffer.size - 1;
            assert_eq!(buffer.read(last, 1), [0]);
            buffer.write(last, &[7, 8, 9]);
            buffer.write(0, &[1, 2]);
            assert_eq!((buffer.read(last, 9), buffer.read(0, 3)), (vec![7], vec![1, 2, 0]));
            assert!(buffer.read(last + 2, 1).is_empty());
            buffer.write(usize::MAX, &[1]);
        }
    }

    #[test]
    fn a_size_that_no_host_has_is_an_error() {
        for size in [usize::MAX, usize::MAX / 2] {
            let error = DmaBuffer::new(size).unwrap_err();
            assert!(matches!(error, SelfTestError::NoMemory(..)), "{size:#x}");
        }
    }
}
