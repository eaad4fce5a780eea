//! Guest physical address space as devices see it: windows onto host memory.

use std::io;
use std::ptr::NonNull;

/// Where a device's memory appears in the guest without exits.
pub trait MemorySlots: Send + Sync {
    /// Makes `size` bytes at the host address `host` appear at guest physical address `gpa`.
    ///
    /// # Safety
    ///
    /// The memory must stay mapped in this process for as long as the guest can run, or until it is
    /// [unmapped](Self::unmap).
    ///
    /// # Errors
    ///
    /// What the hypervisor refused it with.
    unsafe fn map(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()>;

    /// Undoes a [`map`](Self::map) of exactly these addresses: accesses trap from here on.
    ///
    /// # Errors
    ///
    /// What the hypervisor refused it with; `NotFound` if nothing was mapped there.
    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()>;
}
