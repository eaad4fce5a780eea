//! A region mapped into this process, reached by volatile accesses only.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Lender, RegionInfo};

/// A device's registers in this process's memory, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    size: usize,
    lender: Option<Arc<Lender>>,
}

// SAFETY: the memory belongs to the mapping alone, wherever it is used from, and is only accessed
// as volatile integers: device registers have no data races in the language's sense.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a part of a region of this file, in bytes from the region's start.
    ///
    /// # Errors
    ///
    /// As from `mmap(2)`; `InvalidInput` if the part's place doesn't fit an address.
    pub fn new(file: &File, region: &RegionInfo, range: Range<u64>) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let size = range.end.checked_sub(range.start).ok_or_else(invalid)?;
        let size = usize::try_from(size).map_err(|_| invalid())?;
        let offset = region.offset.checked_add(range.start).ok_or_else(invalid)?;
        let offset = libc::off_t::try_from(offset).map_err(|_| invalid())?;
        let mut protection = libc::PROT_NONE;
        if region.readable {
            protection |= libc::PROT_READ;
        }
        if region.writable {
            protection |= libc::PROT_WRITE;
        }
        // SAFETY: a new mapping at an address of the kernel's choice; nothing is replaced.
        let address = unsafe {
            let null = std::ptr::null_mut();
            libc::mmap(null, size, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, size, lender: None })
    }

    /// As [`new`](Self::new), of a file whose owner this `lender` stands for: once that withdraws
    /// the mapping, it is memory of ones.
    ///
    /// # Errors
    ///
    /// As from [`new`](Self::new).
    pub fn lent(
        file: &File,
        region: &RegionInfo,
        range: Range<u64>,
        lender: &Arc<Lender>,
    ) -> io::Result<Self> {
        let mut mapping = Self::new(file, region, range)?;
        lender.add(mapping.address, mapping.size);
        mapping.lender = Some(lender.clone());
        Ok(mapping)
    }

    /// Where it is in this process.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// Reads an integer by one access; `None` unless all of it is within and it is aligned to its
    /// size.
    pub fn read<T: Register>(&self, offset: u64) -> Option<T> {
        let register = self.register(offset)?;
        // SAFETY: `register` checked that it is within the mapping and aligned.
        Some(unsafe { register.read_volatile() })
    }

    /// Writes an integer by one access; `None` as for [`read`](Self::read).
    pub fn write<T: Register>(&self, offset: u64, value: T) -> Option<()> {
        let register = self.register(offset)?;
        // SAFETY: `register` checked that it is within the mapping and aligned.
        unsafe { register.write_volatile(value) };
        Some(())
    }

    fn register<T>(&self, offset: u64) -> Option<NonNull<T>> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.size || !offset.is_multiple_of(size_of::<T>()) {
            return None;
        }
        // SAFETY: `offset` is within the mapping, as checked above.
        Some(unsafe { self.address.add(offset) }.cast())
    }
}

/// An integer that a register can hold.
pub trait Register: Copy + private::Integer {}

impl Register for u8 {}
impl Register for u16 {}
impl Register for u32 {}
impl Register for u64 {}

mod private {
    /// Keeps [`Register`](super::Register) to the types for which any bits are a value.
    pub trait Integer {}
    impl Integer for u8 {}
    impl Integer for u16 {}
    impl Integer for u32 {}
    impl Integer for u64 {}
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; whoever handed the memory on (a KVM slot)
        // promised that the guest runs no more.
        let unmap = || unsafe { libc::munmap(self.address.as_ptr().cast(), self.size) };
        match &self.lender {
            Some(lender) => lender.remove(self.address, unmap),
            None => unmap(),
        };
    }
}
