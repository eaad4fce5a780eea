//! What an initrd holds, as `unpack_to_rootfs` of Linux' init/initramfs.c tells it.

use super::error::InitrdFault;
use super::{cpio, gzip};
use crate::file::Extent;
use crate::format::{Compressor, FileSystem, Format, START_SIZE, UIMAGE_HEADER_SIZE, UImageType};

/// What strait looks into, and no further: a RAM disk in a RAM disk.
pub(super) const U_BOOT_RAM_DISK: Format = Format::UImage(UImageType::RAMDISK);

/// What an initrd holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// Archives that Linux unpacks, as far as was looked at.
    Initramfs,
    /// A file system to boot from.
    FileSystem(FileSystem),
    /// A RAM disk behind U-Boot's header.
    Wrapped(Extent<'a>),
}

/// Looks at the start of an initrd.
pub(super) fn of(extent: Extent<'_>) -> Result<Content<'_>, InitrdFault> {
    let mut buffer = [0; START_SIZE];
    let start = extent.read_start(&mut buffer)?;
    // Linux skips zeroes.
    let zeroes = start.iter().take_while(|byte| **byte == 0).count();
    let Some(head) = start.get(zeroes..).filter(|head| !head.is_empty()) else {
        return Err(InitrdFault::Foreign(Format::Zeroes));
    };
    let extent_of_head = extent.after(zeroes as u64);
    match Format::of(head) {
        Format::Cpio => {
            // Compressed archives may follow, as they do behind the one with the CPU's microcode.
            // Linux only warns of anything else there.
            if let Some(rest) = cpio::check(extent_of_head)? {
                let mut buffer = [0; START_SIZE];
                let start = rest.read_start(&mut buffer)?;
                if let Format::Compressed(compressor) = Format::of(start) {
                    compressed(compressor, start, rest)?;
                }
            }
            Ok(Content::Initramfs)
        }
        Format::Compressed(compressor) => compressed(compressor, head, extent_of_head),
        // Of all others, only what starts at the first byte is what it seems.
        _ => match Format::of(start) {
            Format::FileSystem(kind) => Ok(Content::FileSystem(kind)),
            U_BOOT_RAM_DISK => unwrap(extent, start),
            other => Err(InitrdFault::Foreign(other)),
        },
    }
}

/// Judges what a compressor made.
fn compressed<'a>(
    compressor: Compressor,
    head: &[u8],
    extent: Extent<'_>,
) -> Result<Content<'a>, InitrdFault> {
    /// Where the kind of check is in an xz stream, and the largest that Linux knows, CRC32
    /// (lib/xz/xz_dec_stream.c).
    const XZ_CHECK: (usize, u8) = (7, 1);
    match compressor {
        Compressor::Gzip => {
            let content = match gzip::format(head)? {
                Format::Cpio => Content::Initramfs,
                Format::FileSystem(kind) => Content::FileSystem(kind),
                other => return Err(InitrdFault::ForeignInside(other)),
            };
            gzip::check_end(extent)?;
            Ok(content)
        }
        Compressor::Lz4 => Err(InitrdFault::Lz4Frame),
        Compressor::Xz if head.get(XZ_CHECK.0).is_some_and(|check| *check > XZ_CHECK.1) => {
            Err(InitrdFault::XzCheck)
        }
        _ => Ok(Content::Initramfs),
    }
}

/// What is behind U-Boot's legacy header: it has the size of that, big-endian, at 12.
fn unwrap<'a>(extent: Extent<'a>, start: &[u8]) -> Result<Content<'a>, InitrdFault> {
    let wrapper = "the data behind U-Boot's header";
    let size = start.get(12..).and_then(|rest| rest.first_chunk()).map(|s| u32::from_be_bytes(*s));
    let inside = extent.after(UIMAGE_HEADER_SIZE);
    match size.map(u64::from) {
        Some(0) => Err(InitrdFault::Damaged { wrapper }),
        Some(size) if size <= inside.size() => Ok(Content::Wrapped(inside.first(size))),
        _ => Err(InitrdFault::CutOff { wrapper }),
    }
}
