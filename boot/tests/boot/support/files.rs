//! Files for a guest, made here, and RAM to load them into.

use std::io::Write;

use flate2::write::GzEncoder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: u64 = 8 << 20;

/// An arm64 Image of `length` bytes that asks for `image_size` bytes of memory.
pub fn image(length: usize, image_size: u64) -> Vec<u8> {
    let mut image: Vec<u8> = (0..length).map(|n| (n % 251).to_le_bytes()[0]).collect();
    image[8..16].fill(0);
    image[16..24].copy_from_slice(&image_size.to_le_bytes());
    image[24..32].copy_from_slice(&0b1010_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image[60..64].fill(0);
    image
}

/// The same with an EFI stub's PE header whose last section ends at `end`.
pub fn image_with_stub(length: usize, image_size: u64, end: u32) -> Vec<u8> {
    const OPTIONAL_HEADER: u16 = 0xa0;
    let mut image = image(length, image_size);
    image[60..64].copy_from_slice(&64_u32.to_le_bytes());
    image[64..68].copy_from_slice(b"PE\0\0");
    image[70..72].copy_from_slice(&2_u16.to_le_bytes());
    image[84..86].copy_from_slice(&OPTIONAL_HEADER.to_le_bytes());
    let table = 64 + 24 + usize::from(OPTIONAL_HEADER);
    for (section, size, offset) in [(table, 1024, 4096), (table + 40, end - 5120, 5120)] {
        image[section + 16..section + 20].copy_from_slice(&u32::to_le_bytes(size));
        image[section + 20..section + 24].copy_from_slice(&u32::to_le_bytes(offset));
    }
    image
}

/// `e_type` of a program that is linked to its addresses, and of one that isn't.
pub const ET_EXEC: u16 = 2;
pub const ET_DYN: u16 = 3;

/// A part of an ELF file that is loaded.
pub struct ElfSegment<'a> {
    pub virt: u64,
    pub phys: u64,
    pub bytes: &'a [u8],
    /// Its size in memory.
    pub size: u64,
}

/// An ELF file for AArch64, with its segments from 4096 on, 4096 bytes apart.
pub fn elf(kind: u16, entry: u64, segments: &[ElfSegment<'_>]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(kind.to_le_bytes());
    file.extend(183_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend([entry, 64, 0].iter().flat_map(|field| field.to_le_bytes()));
    file.extend([0; 4]);
    let count = u16::try_from(segments.len()).unwrap();
    file.extend([64, 56, count, 64, 0, 0].iter().flat_map(|field: &u16| field.to_le_bytes()));
    for (index, part) in (1_u64..).zip(segments) {
        // PT_LOAD, readable, writable and executable.
        file.extend([1, 7].iter().flat_map(|field: &u32| field.to_le_bytes()));
        let fields = [index * 4096, part.virt, part.phys, part.bytes.len() as u64, part.size, 4096];
        file.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    }
    for part in segments {
        file.resize(file.len().next_multiple_of(4096), 0);
        file.extend(part.bytes);
    }
    file
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A zstd frame of raw blocks (RFC 8878, 3.1.1), without a checksum.
pub fn zstd(data: &[u8]) -> Vec<u8> {
    // No content size, a window of 128 KiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    let blocks = data.chunks(100_000).count();
    for (index, block) in data.chunks(100_000).enumerate() {
        let last = u32::from(index + 1 == blocks);
        let header = u32::try_from(block.len()).unwrap() << 3 | last;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

/// An EFI zboot kernel around `payload`, with something behind it as the real ones have.
pub fn zboot(compression: &str, payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 4096];
    file[..8].copy_from_slice(b"MZ\0\0zimg");
    file[8..12].copy_from_slice(&4096_u32.to_le_bytes());
    file[12..16].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    file[24..24 + compression.len()].copy_from_slice(compression.as_bytes());
    file.extend_from_slice(payload);
    file.extend_from_slice(&[0xa5; 4096]);
    file
}

/// Guest RAM filled with a pattern, to see what is written.
pub fn ram() -> GuestMemoryMmap {
    let size = usize::try_from(RAM_SIZE).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), size)]).unwrap();
    memory.write_slice(&vec![0xee; size], GuestAddress(RAM)).unwrap();
    memory
}

/// Asserts that from `at` on there is `content`, with nothing written before or behind it.
pub fn assert_loaded(memory: &GuestMemoryMmap, at: u64, content: &[u8]) {
    let mut all = vec![0; usize::try_from(RAM_SIZE).unwrap()];
    memory.read_slice(&mut all, GuestAddress(RAM)).unwrap();
    let start = usize::try_from(at - RAM).unwrap();
    let (before, rest) = all.split_at(start);
    let (found, behind) = rest.split_at(content.len());
    assert!(found == content, "what was loaded isn't what was in the file");
    // Slices compare at once: a debug build takes its time for each byte else.
    let pattern = vec![0xee; all.len()];
    assert!(before == &pattern[..before.len()], "written before");
    assert!(behind == &pattern[..behind.len()], "written behind");
}

/// An archive with one file of `length` bytes, its size a multiple of 4 and not of 512.
pub fn cpio(length: usize) -> Vec<u8> {
    let mut archive = Vec::new();
    let content: Vec<u8> = (0..length).map(|n| (n % 251).to_le_bytes()[0]).collect();
    for (name, data) in [("init", &content[..]), ("TRAILER!!!", &[])] {
        archive.extend_from_slice(b"070701");
        for field in [1, 0o100_755, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            write!(archive, "{field:08x}").unwrap();
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// The same as programs write it, padded to a block of 512 bytes.
pub fn padded_cpio(length: usize) -> Vec<u8> {
    let mut archive = cpio(length);
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive
}

/// `data` behind U-Boot's legacy header, as mkimage writes it.
pub fn uimage(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..4].copy_from_slice(&0x2705_1956_u32.to_be_bytes());
    file[12..16].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    // Linux, arm64, the type.
    file[28..31].copy_from_slice(&[5, 22, kind]);
    file.extend_from_slice(data);
    file
}

/// A file of 2 KiB with `magic` at `offset`.
pub fn with_magic(offset: usize, magic: &[u8]) -> Vec<u8> {
    let mut file = vec![1; 2048];
    file[offset..offset + magic.len()].copy_from_slice(magic);
    file
}
