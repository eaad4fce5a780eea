//! The header of an arm64 `Image` (Documentation/arch/arm64/booting.rst, 4).

use crate::format::Le;
use crate::layout::{Placement, Ram};
use crate::size::{KIB, MIB};

/// Bytes of the header.
pub(super) const HEADER_SIZE: u64 = 64;

/// The magic number at 56: "ARM\x64".
const MAGIC: &[u8] = b"ARM\x64";

/// What the kernel's start is a multiple of, before `text_offset`.
const BASE_ALIGN: u64 = 2 * MIB;

/// `text_offset` of kernels before v3.17, whose header doesn't say its endianness.
const LEGACY_TEXT_OFFSET: u64 = 0x8_0000;

/// What is kept free for the BSS of kernels before v3.17, whose header doesn't give its size
/// ("the amount of space required … is effectively unbound"); a defconfig of that time had 1 MiB.
const LEGACY_BSS: u64 = 2 * MIB;

/// The header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where the image is loaded, from a 2 MiB aligned address on.
    text_offset: u64,
    /// The image's size in memory, its BSS included; 0 before v3.17.
    image_size: u64,
    /// Endianness, page size and placement.
    flags: u64,
    /// Offset of the PE header; 0 without EFI stub.
    pe_offset: u32,
    /// Offset of the first instruction behind the header, where the header's code says.
    entry_offset: Option<u64>,
}

impl Header {
    /// The header in the first bytes of a file, if there is one.
    pub(super) fn parse(start: &[u8]) -> Option<Self> {
        let fields = Le(start);
        if !fields.has(56, MAGIC) {
            return None;
        }
        Some(Self {
            text_offset: fields.u64(8)?,
            image_size: fields.u64(16)?,
            flags: fields.u64(24)?,
            pe_offset: fields.u32(60)?,
            entry_offset: entry_offset(fields),
        })
    }

    /// Whether the kernel runs big-endian (flags bit 0).
    pub(super) fn is_big_endian(&self) -> bool {
        self.flags & 1 != 0
    }

    /// The kernel's page size in bytes (flags bits 1-2), where it says.
    pub(super) fn page_size(&self) -> Option<u64> {
        match self.flags >> 1 & 3 {
            1 => Some(4 * KIB),
            2 => Some(16 * KIB),
            3 => Some(64 * KIB),
            _ => None,
        }
    }

    /// How much of a file of `size` bytes belongs to the image. A signature may follow, which must
    /// not be written behind the memory that the kernel asks for.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn loaded_size(&self, size: u64) -> u64 {
        if self.image_size == 0 { size } else { size.min(self.image_size) }
    }

    /// The image's size in memory, where the header says.
    pub(super) fn image_size(&self) -> Option<u64> {
        (self.image_size != 0).then_some(self.image_size)
    }

    /// The file size below which the image is cut off: the end of its last PE section. A kernel
    /// without EFI stub tells where it is entered, which lies behind its text and constants.
    pub(super) fn least_file_size(&self, start: &[u8]) -> u64 {
        let entry = self.entry_offset.and_then(|offset| offset.checked_add(4));
        self.sections_end(start).or(entry).unwrap_or(HEADER_SIZE).max(HEADER_SIZE)
    }

    /// The end of the last section in the PE header (Microsoft's PE Format, "Section Table").
    fn sections_end(&self, start: &[u8]) -> Option<u64> {
        const COFF_HEADER: usize = 24;
        const SECTION: usize = 40;
        let fields = Le(start);
        let pe = usize::try_from(self.pe_offset).ok().filter(|offset| *offset != 0)?;
        if !fields.has(pe, b"PE\0\0") {
            return None;
        }
        let sections = usize::from(fields.u16(pe.checked_add(6)?)?);
        let optional_header = usize::from(fields.u16(pe.checked_add(20)?)?);
        let table = pe.checked_add(COFF_HEADER)?.checked_add(optional_header)?;
        (0..sections)
            .map_while(|index| {
                let section = index.checked_mul(SECTION)?.checked_add(table)?;
                let size = fields.u32(section.checked_add(16)?)?;
                let offset = fields.u32(section.checked_add(20)?)?;
                u64::from(offset).checked_add(u64::from(size))
            })
            .max()
    }

    /// How far behind a 2 MiB boundary the image lies.
    pub(super) fn load_offset(&self) -> u64 {
        if self.image_size == 0 { LEGACY_TEXT_OFFSET } else { self.text_offset }
    }

    /// Where the image lies in RAM, for a file of `file_size` bytes.
    ///
    /// As near to the base of RAM as can be, which serves both kinds of kernel: those that can't
    /// use memory below themselves (flags bit 3 clear) and those that can lie anywhere.
    ///
    /// # Errors
    ///
    /// It doesn't fit; the bytes of RAM that it would need.
    pub(super) fn placement(&self, ram: Ram, file_size: u64) -> Result<Placement, u64> {
        let legacy = self.image_size == 0;
        let offset = self.load_offset();
        let size = if legacy { file_size.saturating_add(LEGACY_BSS) } else { self.image_size };
        let base = ram.base.checked_next_multiple_of(BASE_ALIGN).unwrap_or(u64::MAX);
        let load = base.saturating_add(offset);
        let end = load.saturating_add(size);
        if end > ram.end() {
            return Err(end.saturating_sub(ram.base));
        }
        Ok(Placement { load, entry: load, end, open_end: false })
    }
}

/// Where `code0` or `code1` jumps: a B instruction, forwards (Arm Architecture Reference Manual, C6.2
/// "B").
fn entry_offset(fields: Le<'_>) -> Option<u64> {
    [0, 4].into_iter().find_map(|at| {
        let instruction = fields.u32(at)?;
        // The uppermost bit of the offset, bit 25, is its sign.
        let forwards = instruction & 0xfe00_0000 == 0x1400_0000;
        forwards.then(|| u64::from(instruction & 0x01ff_ffff) * 4 + at as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: Ram = Ram { base: 0x4000_0000, size: 64 * MIB };

    fn header(text_offset: u64, image_size: u64, flags: u64) -> Header {
        Header { text_offset, image_size, flags, pe_offset: 0, entry_offset: None }
    }

    #[test]
    fn lies_at_its_offset_from_a_2_mib_boundary_and_ends_behind_its_bss() {
        for (header, base, load, end) in [
            (header(0, 0xa8_0000, 0xa), RAM.base, 0x4000_0000, 0x40a8_0000),
            (header(0x8_0000, 0x10_0000, 0), RAM.base, 0x4008_0000, 0x4018_0000),
            (header(0, 0x1000, 8), RAM.base + 1, 0x4020_0000, 0x4020_1000),
            // The offset of a header without size is not to be believed.
            (header(0x800_0000_0000, 0, 0), RAM.base, 0x4008_0000, 0x4028_3039),
        ] {
            let placed = header.placement(Ram { base, ..RAM }, 12345).unwrap();
            assert_eq!(placed, Placement { load, entry: load, end, open_end: false });
        }
    }

    #[test]
    fn refuses_what_ram_cannot_hold_and_says_how_much_it_takes() {
        for (header, needed) in [
            (header(0, 65 * MIB, 0), 65 * MIB),
            (header(64 * MIB, 1, 0), 64 * MIB + 1),
            (header(u64::MAX, 1, 0), u64::MAX - RAM.base),
            (header(0x8_0000, u64::MAX, 0), u64::MAX - RAM.base),
        ] {
            assert_eq!(header.placement(RAM, 1), Err(needed));
        }
        assert!(header(0, 64 * MIB, 0).placement(RAM, 1).is_ok());
        assert!(header(0, 0, 0).placement(RAM, 62 * MIB).is_err());
    }

    #[test]
    fn a_kernel_without_efi_stub_reaches_to_where_it_is_entered() {
        let least = |code0: u32, code1: u32| {
            let mut start = [0; 64];
            start[56..60].copy_from_slice(MAGIC);
            start[..4].copy_from_slice(&code0.to_le_bytes());
            start[4..8].copy_from_slice(&code1.to_le_bytes());
            Header::parse(&start).unwrap().least_file_size(&start)
        };
        // `b .+0x700000`, `nop; b .+0x700000`, `b .-4`, and no jump at all.
        assert_eq!(least(0x141c_0000, 0), 0x70_0004);
        assert_eq!(least(0xd503_201f, 0x141c_0000), 0x70_0008);
        assert_eq!(least(0x17ff_ffff, 0), HEADER_SIZE);
        assert_eq!(least(0xd503_201f, 0xd503_201f), HEADER_SIZE);
    }

    #[test]
    fn flags_say_page_size_and_endianness() {
        for (flags, page, big) in [
            (0b0000, None, false),
            (0b1010, Some(4096), false),
            (0b1101, Some(16384), true),
            (0b0110, Some(65536), false),
        ] {
            let header = header(0, 0, flags);
            assert_eq!((header.page_size(), header.is_big_endian()), (page, big));
        }
    }
}
