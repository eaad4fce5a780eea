//! Memory that a device reads and writes while this process does.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use super::super::region::host_page_size;
use super::SelfTestError;

/// Zeroed memory, unmapped when dropped. It is only copied from and to: there are no references into
/// it, for it may change at any time.
#[derive(Debug)]
pub struct DmaBuffer {
    address: NonNull<u8>,
    size: usize,
}

// SAFETY: the memory is this value's alone and is reached by copies through raw pointers only.
unsafe impl Send for DmaBuffer {}
// SAFETY: as above; two copies at once see any mixture of bytes, as with a device at work.
unsafe impl Sync for DmaBuffer {}

impl DmaBuffer {
    /// At least `size` bytes, made up to whole pages; aligned to the largest power of two within
    /// `size`, so that an IOMMU can use large pages.
    ///
    /// # Errors
    ///
    /// The host has no room for it.
    pub fn new(size: usize) -> Result<Self, SelfTestError> {
        let failed = |source| SelfTestError::NoMemory { size: size as u64, source };
        let page = usize::try_from(host_page_size()).unwrap_or(4096);
        let overflow = || failed(io::ErrorKind::InvalidInput.into());
        let size = size.max(1).checked_next_multiple_of(page).ok_or_else(overflow)?;
        let alignment = (1_usize << size.ilog2()).max(page);
        let reserved = size.checked_add(alignment).ok_or_else(overflow)?;
        let start = map(reserved).map_err(failed)?;
        let before = start.as_ptr().align_offset(alignment).min(alignment);
        // SAFETY: at most `alignment` bytes into `size + alignment` of them.
        let address = unsafe { start.add(before) };
        // What lies around is given back, each part whole pages.
        // SAFETY: both parts are within the mapping made above and nobody has a pointer into them.
        unsafe {
            unmap(start, before);
            unmap(address.add(size), alignment - before);
            // Only advice: without large pages it works as well.
            libc::madvise(address.as_ptr().cast(), size, libc::MADV_HUGEPAGE);
        }
        Ok(Self { address, size })
    }

    /// Where it is in this process.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Puts bytes at `offset`, where the device sees them; those that don't fit are left out.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let Some((to, length)) = self.part(offset, bytes.len()) else { return };
        // SAFETY: `part` is within the memory; `bytes` is elsewhere.
        unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), length) };
        synchronise(to, length);
        fence(Ordering::SeqCst);
    }

    /// The bytes at `offset` as the device left them; fewer than `length` at the end.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let Some((from, length)) = self.part(offset, length) else { return Vec::new() };
        let mut bytes = vec![0; length];
        fence(Ordering::SeqCst);
        synchronise(from, length);
        // SAFETY: `part` is within the memory; `bytes` is elsewhere and as long.
        unsafe { from.as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), length) };
        bytes
    }

    fn part(&self, offset: usize, length: usize) -> Option<(NonNull<u8>, usize)> {
        let left = self.size.checked_sub(offset)?;
        // SAFETY: `offset` is within the memory, as checked above.
        Some((unsafe { self.address.add(offset) }, length.min(left)))
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; whoever mapped it for DMA keeps it until that is undone.
        unsafe { unmap(self.address, self.size) };
    }
}

fn map(size: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice; nothing is replaced.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// # Safety
///
/// Whole pages of a mapping of this process that nobody uses.
unsafe fn unmap(address: NonNull<u8>, size: usize) {
    if size != 0 {
        // SAFETY: as the caller promises.
        unsafe { libc::munmap(address.as_ptr().cast(), size) };
    }
}

/// Makes caches and memory agree: a device that isn't coherent sees memory alone. Where it is
/// coherent this changes nothing. (Arm ARM, DC CIVAC and CTR_EL0, which Linux lets processes use.)
#[cfg(target_arch = "aarch64")]
fn synchronise(address: NonNull<u8>, length: usize) {
    let types: u64;
    // SAFETY: reads a register that tells the size of cache lines.
    unsafe { std::arch::asm!("mrs {}, ctr_el0", out(reg) types, options(nomem, nostack)) };
    // DminLine, bits 19:16: the logarithm of the smallest line's words of four bytes.
    let line = 4_usize << (types >> 16 & 0xf);
    let start = address.as_ptr().addr();
    for at in (start & !(line - 1)..start.saturating_add(length)).step_by(line) {
        // SAFETY: writes back and drops a cache line of memory that is mapped here: its bytes stay
        // what they are for this process.
        unsafe { std::arch::asm!("dc civac, {}", in(reg) at, options(nostack)) };
    }
    // SAFETY: a barrier.
    unsafe { std::arch::asm!("dsb sy", options(nostack)) };
}

/// Where this crate is built for tests only, no device is.
#[cfg(not(target_arch = "aarch64"))]
fn synchronise(_: NonNull<u8>, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_holds_what_is_put_there() {
        for size in [1, 4096, 5000, 1 << 21, (1 << 21) + 4096] {
            let memory = DmaBuffer::new(size).unwrap();
            let alignment = 1_usize << memory.size().ilog2();
            assert!(memory.size() >= size as u64);
            assert!(memory.address().as_ptr().addr().is_multiple_of(alignment), "{size}");
            let last = memory.size - 1;
            assert_eq!(memory.read(last, 1), [0]);
            memory.write(last, &[7, 8, 9]);
            memory.write(0, &[1, 2]);
            assert_eq!((memory.read(last, 9), memory.read(0, 3)), (vec![7], vec![1, 2, 0]));
            assert_eq!(memory.read(last + 2, 1), []);
            memory.write(usize::MAX, &[1]);
        }
    }

    #[test]
    fn what_no_host_has_is_an_error() {
        for size in [usize::MAX, usize::MAX / 2] {
            assert!(
                matches!(DmaBuffer::new(size), Err(SelfTestError::NoMemory { .. })),
                "{size:#x}"
            );
        }
    }
}
