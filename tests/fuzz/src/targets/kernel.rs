//! A kernel's file: its header, and what wraps it.

use arbitrary::{Result, Unstructured};
use boot::help::Help;
use boot::kernel::Kernel;

use crate::file::{MemoryFile, gzip};

/// Where RAM begins and ends (GPA).
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 512 << 20;

pub fn run(data: &[u8]) {
    let Ok(content) = file(&mut Unstructured::new(data)) else { return };
    let file = MemoryFile::new(&content);
    match Kernel::open(&file.path(), None) {
        Ok(kernel) => {
            if let Ok(placement) = kernel.placement(RAM, RAM_SIZE) {
                assert!(placement.load >= RAM && placement.end <= RAM + RAM_SIZE);
            }
            drop((kernel.page_size(), kernel.shortage(), kernel.packaging().to_string()));
        }
        Err(error) => drop((error.to_string(), error.help())),
    }
}

fn file(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    Ok(match u.arbitrary::<u8>()? % 8 {
        0 => rest(u).to_vec(),
        1 => image(u)?,
        2 => gzip(&image(u)?),
        3 => zboot(u, b"gzip", &|u| Ok(gzip(&image(u)?)))?,
        4 => zboot(u, b"zstd", &|u| Ok(zstd(&image(u)?)))?,
        5 => zboot(u, b"gzip", &|u| Ok(rest(u).to_vec()))?,
        6 => zboot(u, b"zstd22", &|u| Ok([&[0x28, 0xb5, 0x2f, 0xfd], rest(u)].concat()))?,
        _ => [&[0x1f, 0x8b, 8], rest(u)].concat(),
    })
}

fn rest<'a>(u: &mut Unstructured<'a>) -> &'a [u8] {
    let len = u.len();
    u.bytes(len).unwrap_or_default()
}

/// An `Image` with any fields (Documentation/arch/arm64/booting.rst, 4) and any bytes behind them.
fn image(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut image = vec![0; 64];
    for at in [0, 8, 16, 24] {
        let field = u64::from(u.arbitrary::<u32>()?) << u.int_in_range(0..=32)?;
        image[at..at + 8].copy_from_slice(&field.to_le_bytes());
    }
    image[56..60].copy_from_slice(b"ARM\x64");
    let pe_offset = if u.arbitrary()? { 64 } else { u.arbitrary::<u32>()? };
    image[60..64].copy_from_slice(&pe_offset.to_le_bytes());
    image.extend(rest(u));
    let size = image.len() + (usize::from(image[0]) << 4);
    image.resize(size, 0);
    Ok(image)
}

/// An EFI zboot image with any offset and size of its payload.
fn zboot(
    u: &mut Unstructured<'_>,
    compression: &[u8],
    payload: &dyn Fn(&mut Unstructured<'_>) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let (exact, offset, size) = (u.arbitrary::<bool>()?, u.arbitrary::<u32>()?, u.arbitrary()?);
    let payload = payload(u)?;
    let whole = (64, u32::try_from(payload.len()).unwrap_or(u32::MAX));
    let (offset, size): (u32, u32) = if exact { whole } else { (offset, size) };
    let mut file = vec![0; 64];
    file[..8].copy_from_slice(b"MZ\0\0zimg");
    file[8..12].copy_from_slice(&offset.to_le_bytes());
    file[12..16].copy_from_slice(&size.to_le_bytes());
    file[24..24 + compression.len()].copy_from_slice(compression);
    file.extend(payload);
    file.extend([0xa5; 16]);
    Ok(file)
}

/// A frame of raw blocks (RFC 8878, 3.1.1).
fn zstd(data: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    let blocks = data.len().div_ceil(4096);
    for (index, block) in data.chunks(4096).enumerate() {
        let last = u32::from(index + 1 == blocks);
        let header = u32::try_from(block.len()).unwrap_or_default() << 3 | last;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.extend(block);
    }
    frame
}
