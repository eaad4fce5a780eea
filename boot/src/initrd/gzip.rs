//! gzip'ed initrds: what they hold, and whether they are whole.

use std::io::{self, BufReader, Read};

use flate2::bufread::GzDecoder;

use super::error::InitrdFault;
use crate::file::Extent;
use crate::format::{Format, START_SIZE};

/// What errors call it.
const WRAPPER: &str = "its gzip data";

/// The least that gzip makes of anything (RFC 1952: header and trailer).
const MIN_SIZE: u64 = 18;

/// The most that deflate makes of one byte.
const MAX_RATIO: u64 = 1032;

/// A ratio that an initrd hardly has.
const MAX_TYPICAL_RATIO: u64 = 64;

/// The format of what is in gzip data whose first bytes are `head`.
pub(super) fn format(head: &[u8]) -> Result<Format, InitrdFault> {
    let mut unpacked = Vec::with_capacity(START_SIZE);
    let result = GzDecoder::new(head).take(START_SIZE as u64).read_to_end(&mut unpacked);
    if result.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::UnexpectedEof) {
        return Err(InitrdFault::Damaged { wrapper: WRAPPER });
    }
    // Linux skips zeroes before an archive.
    let inside = unpacked.iter().position(|byte| *byte != 0).and_then(|at| unpacked.get(at..));
    match (Format::of(inside.unwrap_or_default()), Format::of(&unpacked)) {
        (Format::Cpio, _) => Ok(Format::Cpio),
        // Not even an archive's first header was there.
        (_, Format::Zeroes | Format::Empty) if result.is_err() => {
            Err(InitrdFault::CutOff { wrapper: WRAPPER })
        }
        (_, format) => Ok(format),
    }
}

/// Checks that the end of gzip data is there.
pub(super) fn check_end(extent: Extent<'_>) -> Result<(), InitrdFault> {
    if has_trailer(extent)? { Ok(()) } else { unpack(extent) }
}

/// Whether the data ends in what can be the trailer of what archivers write: the unpacked size, a
/// multiple of 512 (or of 4, if it also makes a usual ratio). The end of a file that was cut off
/// looks so once in some hundred times.
fn has_trailer(extent: Extent<'_>) -> Result<bool, InitrdFault> {
    let size = extent.size();
    let mut buffer = [0; 4096];
    let end = extent.read_end(&mut buffer)?;
    // The size's last bytes can be zero, and zeroes may follow it.
    let used = end.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
    let ends = (used..=used.saturating_add(3)).filter_map(|end_of_size| {
        let bytes = end.get(end_of_size.checked_sub(4)?..end_of_size)?;
        Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?)))
    });
    let mut ends = ends.filter(|unpacked| *unpacked > 0);
    Ok(ends.any(|unpacked| {
        let usual = size.saturating_sub(MIN_SIZE)..=size.saturating_mul(MAX_TYPICAL_RATIO);
        (unpacked.is_multiple_of(512) && unpacked <= size.saturating_mul(MAX_RATIO))
            || (unpacked.is_multiple_of(4) && usual.contains(&unpacked))
    }))
}

/// Unpacks it all into nothing.
fn unpack(extent: Extent<'_>) -> Result<(), InitrdFault> {
    let mut decoder = GzDecoder::new(BufReader::with_capacity(1 << 16, extent));
    match io::copy(&mut decoder, &mut io::sink()) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Err(InitrdFault::CutOff { wrapper: WRAPPER })
        }
        Err(_) => Err(InitrdFault::Damaged { wrapper: WRAPPER }),
    }
}
