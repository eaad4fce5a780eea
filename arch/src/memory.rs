//! Guest RAM: one stretch of host memory, anonymous or a file that other processes can map.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};

use boot::fdt::Node;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::{Error, layout::RAM_START};

/// Host memory is aligned to this, so that KVM and the IOMMU can map it in 2 MiB blocks.
const BLOCK_SIZE: usize = 2 << 20;

/// The guest's RAM, mapped into this process.
///
/// Reserved, not committed: the host gives pages as they are touched.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    host: NonNull<u8>,
    size: usize,
    file: Option<File>,
}

// SAFETY: `host` is the address of memory that `memory` keeps mapped; it is only ever handed out
// as an address, and `GuestMemoryMmap` itself is Send and Sync.
unsafe impl Send for GuestRam {}
// SAFETY: as above; no method gives out references into the memory.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Reserves `size` bytes.
    ///
    /// # Errors
    ///
    /// The host has no room for a mapping of this size.
    pub fn new(size: u64) -> Result<Self, Error> {
        Self::reserve(size, None)
    }

    /// Reserves `size` bytes of a file in memory, which [`file`](Self::file) hands to other
    /// processes. Its size is sealed: none of them can take the memory away.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new), or the host has no such files.
    #[cold]
    pub fn shared(size: u64) -> Result<Self, Error> {
        let file = memfd(size).map_err(|source| Error::MapRam { size, source })?;
        Self::reserve(size, Some(file))
    }

    fn reserve(size: u64, file: Option<File>) -> Result<Self, Error> {
        let failed = |source| Error::MapRam { size, source };
        let invalid = || failed(io::ErrorKind::InvalidInput.into());
        let bytes = usize::try_from(size).map_err(|_| invalid())?;
        let host = reserve(bytes).map_err(failed)?;
        let mut flags = MAP_FLAGS;
        if let Some(file) = &file {
            flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
            map_file(file, host, bytes, flags).map_err(failed)?;
        }
        // SAFETY: `host` is the start of a mapping of `bytes` bytes with these protections and
        // flags, made above; nobody else knows it and it is never unmapped.
        let mut region = unsafe {
            MmapRegionBuilder::new(bytes)
                .with_raw_mmap_pointer(host.as_ptr())
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(flags)
        };
        if let Some(file) = &file {
            // Devices hand it on to the processes that serve them.
            let file = file.try_clone().map_err(failed)?;
            region = region.with_file_offset(FileOffset::new(file, 0));
        }
        let region = region.build().map_err(|e| failed(io::Error::other(e)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(RAM_START)).ok_or_else(invalid)?;
        let memory =
            GuestMemoryMmap::from_regions(vec![region]).map_err(|e| failed(io::Error::other(e)))?;
        Ok(Self { memory, host, size: bytes, file })
    }

    /// The file that it is, where it is [shared](Self::shared); RAM begins at its start.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// The memory, addressed by guest physical addresses.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Where it is in this process.
    pub fn host_address(&self) -> NonNull<u8> {
        self.host
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }
}

const MAP_FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps `size` bytes at a multiple of [`BLOCK_SIZE`]. For good: RAM lives as long as the process, since
/// vCPUs and devices may reach it to the very end.
fn reserve(size: usize) -> io::Result<NonNull<u8>> {
    let padded = size.checked_add(BLOCK_SIZE).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that
    // exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), padded, libc::PROT_NONE, MAP_FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let skip = start.addr().next_multiple_of(BLOCK_SIZE) - start.addr();
    // SAFETY: skip < BLOCK_SIZE, so skip + size stays within the mapping of size + BLOCK_SIZE bytes.
    let aligned = unsafe { start.byte_add(skip) };
    // SAFETY: the range lies within the mapping just made, which nobody uses yet. What is left
    // around it stays inaccessible and catches overruns.
    if unsafe { libc::mprotect(aligned, size, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(aligned.cast()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A file in memory of this size, for good (`memfd_create(2)`).
#[cold]
fn memfd(size: u64) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made for us; nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: F_ADD_SEALS takes a number.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Maps a file over `size` bytes that were [reserved](reserve) at `host`.
#[cold]
fn map_file(file: &File, host: NonNull<u8>, size: usize, flags: i32) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_FIXED;
    // SAFETY: the range was reserved for this, and nobody uses it yet.
    let mapped =
        unsafe { libc::mmap(host.as_ptr().cast(), size, protection, flags, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// While it lives, this process has no transparent huge pages.
///
/// For loading a small kernel: clearing a huge page for some 4 KiB of it takes a tenth of the time in
/// which such a guest starts. What the guest touches later comes in huge pages again, and khugepaged
/// may collapse the others.
#[derive(Debug)]
pub struct HugePagesDisabled(());

impl HugePagesDisabled {
    /// Disables them, if `used` bytes from the start of RAM don't fill one.
    pub fn for_small(used: u64) -> Option<Self> {
        // SAFETY: PR_GET_THP_DISABLE takes no pointer (prctl(2)).
        let disabled = unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) } != 0;
        // Whoever started us may have disabled them for good.
        (used <= BLOCK_SIZE as u64 && !disabled).then(|| {
            set_huge_pages(false);
            Self(())
        })
    }
}

impl Drop for HugePagesDisabled {
    fn drop(&mut self) {
        set_huge_pages(true);
    }
}

fn set_huge_pages(enabled: bool) {
    let disable = libc::c_ulong::from(!enabled);
    // SAFETY: PR_SET_THP_DISABLE takes numbers only (prctl(2)).
    if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, disable, 0, 0, 0) } != 0 {
        log::debug!("PR_SET_THP_DISABLE: {}", io::Error::last_os_error());
    }
}

/// The `memory` node of RAM of `size` bytes (Devicetree Specification 3.4 "/memory node").
pub fn memory_node(size: u64) -> Node {
    Node::at("memory", RAM_START).string("device_type", "memory").reg([(RAM_START, size)])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    #[test]
    fn shared_ram_is_its_file_and_stays() {
        let ram = GuestRam::shared(4 << 20).unwrap();
        ram.memory().write_obj(0x1234_5678u32, GuestAddress(RAM_START + 0x10_0004)).unwrap();
        let file = ram.file().unwrap();
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0x10_0004).unwrap();
        assert_eq!(u32::from_ne_bytes(bytes), 0x1234_5678);
        file.write_all_at(&[9], 0x20_0000).unwrap();
        assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(RAM_START + 0x20_0000)).unwrap(), 9);
        for size in [0, (4 << 20) - 1, (4 << 20) + 1] {
            file.set_len(size).unwrap_err();
        }
        let region = ram.memory().iter().next().unwrap();
        assert_eq!(region.file_offset().map(FileOffset::start), Some(0));
        assert!(GuestRam::new(2 << 20).unwrap().file().is_none());
    }
}
