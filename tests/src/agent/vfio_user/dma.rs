//! The guest's memory as the served device reaches it: DMA, by mappings or by messages.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::proxy::DmaRequester;

/// A stretch of the guest's memory, mapped into this process.
struct Mapped {
    address: u64,
    size: u64,
    host: *mut u8,
}

// SAFETY: the memory belongs to the mapping alone and is only accessed by raw copies.
unsafe impl Send for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `Memory::map` with this size.
        unsafe { libc::munmap(self.host.cast(), usize::try_from(self.size).unwrap_or(0)) };
    }
}

/// The client's memory for DMA: mapped, or reached by messages.
#[derive(Default)]
pub(super) struct Memory(Vec<Mapped>, Option<Arc<DmaRequester>>);

impl Memory {
    /// Reaches all of it by messages.
    pub(super) fn by_messages(requester: Arc<DmaRequester>) -> Self {
        Self(Vec::new(), Some(requester))
    }

    /// Maps what is lent at a bus address.
    pub(super) fn map(
        &mut self,
        file: &File,
        offset: u64,
        address: u64,
        size: u64,
    ) -> io::Result<()> {
        if self.0.iter().any(|m| m.address < address + size && address < m.address + m.size) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let length = usize::try_from(size).map_err(invalid)?;
        let offset = libc::off_t::try_from(offset).map_err(invalid)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let host = unsafe {
            let (protection, null) = (libc::PROT_READ | libc::PROT_WRITE, std::ptr::null_mut());
            libc::mmap(null, length, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if host == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.0.push(Mapped { address, size, host: host.cast() });
        Ok(())
    }

    /// Undoes a mapping of exactly this.
    pub(super) fn unmap(&mut self, address: u64, size: u64) -> io::Result<()> {
        let at = self.0.iter().position(|m| (m.address, m.size) == (address, size));
        let at = at.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        drop(self.0.swap_remove(at));
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Copies within the guest's memory, if all of it is there.
    pub(super) fn copy(&self, source: u64, destination: u64, length: u32) -> Option<()> {
        if let Some(requester) = &self.1 {
            return requester.copy(source, destination, length);
        }
        let (from, to) = (self.find(source, length)?, self.find(destination, length)?);
        // SAFETY: `find` found `length` bytes from either on mapped.
        unsafe { std::ptr::copy(from, to, usize::try_from(length).ok()?) };
        Some(())
    }

    fn find(&self, address: u64, length: u32) -> Option<*mut u8> {
        let end = address.checked_add(u64::from(length))?;
        let mapped = self.0.iter().find(|m| m.address <= address && end <= m.address + m.size)?;
        let offset = usize::try_from(address - mapped.address).ok()?;
        // SAFETY: within the mapping, as checked above.
        Some(unsafe { mapped.host.add(offset) })
    }
}
