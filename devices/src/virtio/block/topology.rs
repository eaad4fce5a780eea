//! How a file or a device of the host is best accessed.

use std::fs::{File, Metadata};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::request::SECTOR;

/// `BLKIOMIN`, `BLKIOOPT`, `BLKALIGNOFF`, `BLKPBSZGET` (Linux' include/uapi/linux/fs.h), which the
/// crate libc lacks.
const BLKIOMIN: u32 = 0x1278;
const BLKIOOPT: u32 = 0x1279;
const BLKALIGNOFF: u32 = 0x127a;
const BLKPBSZGET: u32 = 0x127b;
const BLKSSZGET: u32 = 0x1268;

/// Sizes that accesses should have, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Topology {
    /// The smallest access.
    pub(super) block: u32,
    /// The smallest that isn't read first to be written: `block` times a power of two.
    pub(super) physical: u32,
    /// Where the first of these begins.
    pub(super) alignment: u32,
    /// The smallest that is good.
    pub(super) minimum: u32,
    /// The best, or 0.
    pub(super) optimum: u32,
    /// What an address in memory has to be a multiple of.
    pub(super) memory: u32,
}

/// That of an open file.
pub(super) fn of(file: &File, metadata: &Metadata, direct: bool) -> Topology {
    let sector = u32::try_from(SECTOR).unwrap_or(512);
    let is_size = |size: &u32| (sector..=1 << 20).contains(size) && size.is_power_of_two();
    let mut found = if metadata.file_type().is_block_device() {
        let get = |request| get(file, request);
        let block = get(BLKSSZGET).filter(is_size).unwrap_or(sector);
        let physical = get(BLKPBSZGET).filter(is_size).unwrap_or(block);
        let minimum = get(BLKIOMIN).unwrap_or(physical);
        let (alignment, optimum) = (get(BLKALIGNOFF), get(BLKIOOPT));
        Topology {
            block,
            physical,
            // -1 where there is none.
            alignment: alignment.filter(|at| *at < physical).unwrap_or(0),
            minimum,
            optimum: optimum.unwrap_or(0),
            memory: block,
        }
    } else {
        let physical = u32::try_from(metadata.blksize()).ok().filter(is_size).unwrap_or(4096);
        Topology { block: sector, physical, alignment: 0, minimum: physical, optimum: 0, memory: 1 }
    };
    if direct {
        let (memory, offset) = direct_alignment(file).unwrap_or((sector, sector));
        found.block = found.block.max(offset);
        found.memory = memory;
    }
    found.physical = found.physical.max(found.block);
    found.minimum = found.minimum.max(found.block);
    found
}

/// Whether it is on a file system that is in memory: nothing is waited for there.
pub(super) fn is_in_memory(file: &File) -> bool {
    let mut about = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs fills the structure it is given, or fails.
    if unsafe { libc::fstatfs(file.as_raw_fd(), about.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: fstatfs succeeded, so the structure is filled.
    let about = unsafe { about.assume_init() };
    // TMPFS_MAGIC and RAMFS_MAGIC of Linux' include/uapi/linux/magic.h.
    matches!(about.f_type.cast_unsigned() & 0xffff_ffff, 0x0102_1994 | 0x8584_58f6)
}

/// The alignment of memory and of offsets for `O_DIRECT`, where the file system tells it (statx(2)).
fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    /// `STATX_DIOALIGN`.
    const DIOALIGN: u32 = 0x2000;
    let mut about = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string, and statx fills the structure it is given, or fails.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            DIOALIGN,
            about.as_mut_ptr(),
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: all zeroes is a valid statx, and it was filled.
    let about = unsafe { about.assume_init() };
    let (memory, offset) = (about.stx_dio_mem_align, about.stx_dio_offset_align);
    (about.stx_mask & DIOALIGN != 0 && memory.is_power_of_two() && offset.is_power_of_two())
        .then_some((memory, offset))
}

/// What such a request of a block device, which answers with 32 bits, says.
fn get(file: &File, request: u32) -> Option<u32> {
    let mut value = 0u32;
    // SAFETY: these requests write an `int` or an `unsigned int`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw mut value) };
    (result == 0).then_some(value)
}
