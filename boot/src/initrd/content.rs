//! What an initrd holds, as `unpack_to_rootfs` of Linux' init/initramfs.c tells it.

use std::io;

use super::{Extent, cpio, gzip};
use crate::format::{Compressor, FileSystem, Format, START_SIZE, UIMAGE_HEADER, UImageType};

/// What strait looks into, and no further: a RAM disk in a RAM disk.
pub(super) const U_BOOT_RAM_DISK: Format = Format::UImage(UImageType::RAMDISK);

/// What an initrd holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// Archives that Linux unpacks, as far as that can be told.
    Initramfs,
    /// A file system to boot from.
    FileSystem(FileSystem),
    /// A RAM disk behind U-Boot's header.
    Wrapped(Extent<'a>),
}

/// Why it is no initrd.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It can't be read.
    Unreadable(io::Error),
    /// It is something else.
    Foreign(Format),
    /// It is gzip'ed something else.
    ForeignInside(Format),
    /// It ends early.
    CutOff { wrapper: &'static str },
    /// It isn't what its first bytes say.
    Damaged { wrapper: &'static str },
    /// xz with a check that Linux doesn't know.
    XzCheck,
    /// lz4 in a frame that Linux doesn't know.
    Lz4Frame,
}

/// Looks at the start of an initrd.
pub(super) fn of(extent: Extent<'_>) -> Result<Content<'_>, Refusal> {
    let mut buffer = [0; START_SIZE];
    let start = extent.read(&mut buffer)?;
    // Linux skips zeroes.
    let zeroes = start.iter().take_while(|byte| **byte == 0).count();
    let Some(head) = start.get(zeroes..).filter(|head| !head.is_empty()) else {
        return Err(Refusal::Foreign(Format::Zeroes));
    };
    match Format::of(head) {
        Format::Cpio => {
            cpio::check(extent.after(zeroes as u64))?;
            Ok(Content::Initramfs)
        }
        Format::Compressed(compressor) => compressed(compressor, head, extent.after(zeroes as u64)),
        // Of all others, only what starts at the first byte is what it seems.
        _ => match Format::of(start) {
            Format::FileSystem(kind) => Ok(Content::FileSystem(kind)),
            U_BOOT_RAM_DISK => unwrap(extent, start),
            other => Err(Refusal::Foreign(other)),
        },
    }
}

/// Judges what a compressor made.
pub(super) fn compressed<'a>(
    compressor: Compressor,
    head: &[u8],
    extent: Extent<'a>,
) -> Result<Content<'a>, Refusal> {
    /// Where the kind of check is in an xz stream, and the largest that Linux knows, CRC32
    /// (lib/xz/xz_dec_stream.c).
    const XZ_CHECK: (usize, u8) = (7, 1);
    match compressor {
        Compressor::Gzip => gzip::check(head, extent),
        Compressor::Lz4 => Err(Refusal::Lz4Frame),
        Compressor::Xz if head.get(XZ_CHECK.0).is_some_and(|check| *check > XZ_CHECK.1) => {
            Err(Refusal::XzCheck)
        }
        _ => Ok(Content::Initramfs),
    }
}

/// What is behind U-Boot's legacy header: it has the size of that, big-endian, at 12.
fn unwrap<'a>(extent: Extent<'a>, start: &[u8]) -> Result<Content<'a>, Refusal> {
    let wrapper = "the data behind U-Boot's header";
    let size = start.get(12..16).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let inside = extent.after(UIMAGE_HEADER);
    match size.map(u64::from) {
        Some(0) => Err(Refusal::Damaged { wrapper }),
        Some(size) if size <= inside.size() => {
            Ok(Content::Wrapped(Extent { end: inside.start.saturating_add(size), ..inside }))
        }
        _ => Err(Refusal::CutOff { wrapper }),
    }
}
