//! A region mapped into this process for the guest to access. strait itself doesn't access it: whoever
//! can take it away (a function that stops decoding memory, a server) would end strait by SIGBUS.
//!
//! vm-memory's `MmapRegion` isn't used since it keeps the file open, which here is the device's or a
//! server's, and whose owner decides where it is closed.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{RegionInfo, RevocableMappings};

/// A device's registers in this process's memory, unmapped when dropped. Whoever handed the memory on (as
/// a KVM memory slot) promises that the guest doesn't run any more then.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    size: usize,
    revocable: Option<Arc<RevocableMappings>>,
}

// SAFETY: the memory belongs to the mapping alone, wherever it is used from, and isn't accessed from
// here.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a part of a region of this file, in bytes from the region's start, to be read and
    /// written.
    ///
    /// # Errors
    ///
    /// As from `mmap(2)`, so also if the file can't be both read and written (it was opened for one,
    /// or is sealed by `F_SEAL_WRITE` or `F_SEAL_FUTURE_WRITE`); `InvalidInput` if the part's place
    /// doesn't fit an address.
    pub fn new(file: &impl AsRawFd, region: &RegionInfo, range: Range<u64>) -> io::Result<Self> {
        let size = range.end.checked_sub(range.start).and_then(|size| usize::try_from(size).ok());
        let offset = region.offset.checked_add(range.start);
        let offset = offset.and_then(|offset| libc::off_t::try_from(offset).ok());
        let (Some(size), Some(offset)) = (size, offset) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing is replaced.
        let address = unsafe {
            let null = std::ptr::null_mut();
            libc::mmap(null, size, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, size, revocable: None })
    }

    /// As [`new`](Self::new), for a file whose mappings can be revoked together.
    ///
    /// # Errors
    ///
    /// As from [`new`](Self::new); the limits of [`RevocableMappings`] would be exceeded.
    pub fn revocable(
        file: &impl AsRawFd,
        region: &RegionInfo,
        range: Range<u64>,
        mappings: &Arc<RevocableMappings>,
    ) -> io::Result<Self> {
        let mut mapping = Self::new(file, region, range)?;
        mappings.add(mapping.address, mapping.size)?;
        mapping.revocable = Some(mappings.clone());
        Ok(mapping)
    }

    /// Its address in this process.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before it is unmapped, so that nothing else that comes to lie there is replaced.
        if let Some(mappings) = &self.revocable {
            mappings.remove(self.address);
        }
        // SAFETY: mapped by `new` with this size, and not accessed any more, as promised above.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.size) };
    }
}

#[cfg(test)]
impl Mapping {
    /// Reads 8 bytes as a guest does.
    pub(crate) fn read(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.size);
        // SAFETY: within the mapping and aligned.
        unsafe { self.address.add(offset).cast().read_volatile() }
    }

    /// Writes 8 bytes as a guest does.
    pub(crate) fn write(&self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.size);
        // SAFETY: within the mapping and aligned.
        unsafe { self.address.add(offset).cast().write_volatile(value) }
    }
}
