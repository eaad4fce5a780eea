//! Guest RAM: one stretch of host memory, anonymous or a file that other processes can map.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};

use boot::fdt::Node;
use boot::layout::Ram;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::Error;

/// Host memory and guest physical addresses are aligned to this at least, so that KVM and the IOMMU
/// can map them in 2 MiB blocks.
const BLOCK_SIZE: usize = 2 << 20;

/// The pages of the host that guest RAM is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RamPages {
    /// As the host gives them to a process that asks for nothing.
    #[default]
    Any,
    /// Transparent huge pages, where the host has them.
    Transparent,
    /// Huge pages of this size in bytes, a power of two, that an administrator has reserved.
    Reserved(u64),
}

impl RamPages {
    /// Whether they were reserved, rather than taken of the host's free memory.
    pub fn are_reserved(self) -> bool {
        matches!(self, Self::Reserved(_))
    }

    /// What RAM is aligned to, in bytes: its start in the guest and, where they are
    /// [reserved](Self::Reserved), its size.
    pub fn alignment(self) -> u64 {
        match self {
            Self::Reserved(page) => page.max(BLOCK_SIZE as u64),
            Self::Any | Self::Transparent => BLOCK_SIZE as u64,
        }
    }
}

/// The guest's RAM, mapped into this process.
///
/// Reserved, not committed: the host gives pages as they are touched. Huge pages that are
/// [reserved](RamPages::Reserved) are this guest's from here on.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    host: NonNull<u8>,
    base: u64,
    size: usize,
    file: Option<File>,
}

// SAFETY: `host` is the address of memory that `memory` keeps mapped; it is only ever handed out
// as an address, and `GuestMemoryMmap` itself is Send and Sync.
unsafe impl Send for GuestRam {}
// SAFETY: as above; no method gives out references into the memory.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Reserves memory for `ram`, in pages of this kind.
    ///
    /// # Errors
    ///
    /// The host has no room for a mapping of this size, or too few huge pages.
    pub fn new(ram: Ram, pages: RamPages) -> Result<Self, Error> {
        Self::reserve(ram, pages, None)
    }

    /// Reserves memory of a file in memory, which [`file`](Self::file) hands to other
    /// processes. Its size is sealed: none of them can take the memory away.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new), or the host has no such files.
    #[cold]
    pub fn shared(ram: Ram, pages: RamPages) -> Result<Self, Error> {
        let file = memfd(ram.size, pages).map_err(|source| map_error(ram, pages, source))?;
        Self::reserve(ram, pages, Some(file))
    }

    fn reserve(ram: Ram, pages: RamPages, file: Option<File>) -> Result<Self, Error> {
        let failed = |source| map_error(ram, pages, source);
        let invalid = || failed(io::ErrorKind::InvalidInput.into());
        let bytes = usize::try_from(ram.size).map_err(|_| invalid())?;
        let alignment = usize::try_from(pages.alignment()).map_err(|_| invalid())?;
        let host = reserve(bytes, alignment).map_err(failed)?;
        let mut flags = MAP_FLAGS;
        if file.is_some() || matches!(pages, RamPages::Reserved(_)) {
            flags = flags_of(pages, file.is_some());
            map_over(file.as_ref(), host, bytes, flags).map_err(failed)?;
        }
        if pages == RamPages::Transparent {
            advise_huge_pages(host, bytes).map_err(Error::AdviseRam)?;
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
        let region = GuestRegionMmap::new(region, GuestAddress(ram.base)).ok_or_else(invalid)?;
        let memory =
            GuestMemoryMmap::from_regions(vec![region]).map_err(|e| failed(io::Error::other(e)))?;
        Ok(Self { memory, host, base: ram.base, size: bytes, file })
    }

    /// The file that it is, where it is [shared](Self::shared); RAM begins at its start.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// The memory, addressed by guest physical addresses.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Where it is in the guest (GPA).
    pub fn base(&self) -> u64 {
        self.base
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

/// How RAM is mapped that isn't anonymous memory in pages as they come: huge pages without
/// `MAP_NORESERVE`, so that one that is missing shows here and not by a SIGBUS later (mmap(2)).
#[cold]
fn flags_of(pages: RamPages, shared: bool) -> i32 {
    match (pages, shared) {
        (RamPages::Reserved(_), true) => libc::MAP_SHARED,
        (RamPages::Reserved(page), false) => {
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | huge_size(page)
        }
        (RamPages::Any | RamPages::Transparent, true) => libc::MAP_SHARED | libc::MAP_NORESERVE,
        (RamPages::Any | RamPages::Transparent, false) => MAP_FLAGS,
    }
}

/// The size of huge pages in flags: the power of two from bit 26 on (`MAP_HUGE_SHIFT`,
/// `MFD_HUGE_SHIFT`).
fn huge_size(page: u64) -> i32 {
    (page.trailing_zeros() << libc::MAP_HUGE_SHIFT.unsigned_abs()).cast_signed()
}

/// Maps `size` bytes at a multiple of `alignment`, a power of two. For good: RAM lives as long as the
/// process, since vCPUs and devices may reach it to the very end.
fn reserve(size: usize, alignment: usize) -> io::Result<NonNull<u8>> {
    let padded = size.checked_add(alignment).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that
    // exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), padded, libc::PROT_NONE, MAP_FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let skip = start.addr().next_multiple_of(alignment) - start.addr();
    // SAFETY: skip < alignment, so skip + size stays within the mapping of size + alignment bytes.
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
fn memfd(size: u64, pages: RamPages) -> io::Result<File> {
    let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    if let RamPages::Reserved(page) = pages {
        flags |= libc::MFD_HUGETLB | huge_size(page).unsigned_abs();
    }
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

/// Maps a file, or memory of its own kind, over `size` bytes that were [reserved](reserve) at `host`.
#[cold]
fn map_over(file: Option<&File>, host: NonNull<u8>, size: usize, flags: i32) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_FIXED;
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: the range was reserved for this, and nobody uses it yet.
    let mapped = unsafe { libc::mmap(host.as_ptr().cast(), size, protection, flags, fd, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Asks for transparent huge pages (madvise(2), `MADV_HUGEPAGE`).
#[cold]
fn advise_huge_pages(host: NonNull<u8>, size: usize) -> io::Result<()> {
    // SAFETY: the range is mapped, and its contents stay what they are.
    if unsafe { libc::madvise(host.as_ptr().cast(), size, libc::MADV_HUGEPAGE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Why RAM can't be had.
#[cold]
fn map_error(ram: Ram, pages: RamPages, source: io::Error) -> Error {
    match pages {
        RamPages::Reserved(page) => Error::MapHugePages { size: ram.size, page, source },
        RamPages::Any | RamPages::Transparent => Error::MapRam { size: ram.size, source },
    }
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

/// The `memory` node of RAM (Devicetree Specification 3.4 "/memory node").
pub fn memory_node(ram: Ram) -> Node {
    Node::at("memory", ram.base).string("device_type", "memory").reg([(ram.base, ram.size)])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    const RAM: Ram = Ram { base: 1 << 32, size: 4 << 20 };

    #[test]
    fn shared_ram_is_its_file_and_stays() {
        let ram = GuestRam::shared(RAM, RamPages::Any).unwrap();
        ram.memory().write_obj(0x1234_5678u32, GuestAddress(RAM.base + 0x10_0004)).unwrap();
        let file = ram.file().unwrap();
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0x10_0004).unwrap();
        assert_eq!(u32::from_ne_bytes(bytes), 0x1234_5678);
        file.write_all_at(&[9], 0x20_0000).unwrap();
        assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(RAM.base + 0x20_0000)).unwrap(), 9);
        for size in [0, (4 << 20) - 1, (4 << 20) + 1] {
            file.set_len(size).unwrap_err();
        }
        let region = ram.memory().iter().next().unwrap();
        assert_eq!(region.file_offset().map(FileOffset::start), Some(0));
        assert!(GuestRam::new(RAM, RamPages::Transparent).unwrap().file().is_none());
    }
}
