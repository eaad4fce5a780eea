//! The "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst).

use super::error::InitrdFault;
use crate::file::Extent;

/// The name of an archive's last entry.
const TRAILER: &[u8] = b"TRAILER!!!\0";

/// Bytes of an entry's header.
const HEADER_SIZE: usize = 110;

/// Bytes of zeroes behind which nothing more is looked for.
const MAX_PADDING: usize = 1 << 20;

/// What errors call an archive.
const WRAPPER: &str = "its cpio archive";

/// Checks that archives from here on are whole, as far as they are not compressed; answers what
/// follows them, if it isn't known to be nothing.
pub(super) fn check(extent: Extent<'_>) -> Result<Option<Extent<'_>>, InitrdFault> {
    // One archive, padded to at most 4 KiB as all programs do, ends in its trailer.
    let mut end = [0; 4096];
    let end = extent.read_end(&mut end)?;
    let used = end.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(2));
    if end.get(..used).unwrap_or(end).ends_with(TRAILER) {
        return Ok(None);
    }
    behind(extent)
}

/// Walks through archives up to what is none.
fn behind(mut extent: Extent<'_>) -> Result<Option<Extent<'_>>, InitrdFault> {
    let mut in_archive = true;
    // Each round takes a header's size or more.
    loop {
        if !in_archive {
            match skip_zeroes(extent)? {
                Some(rest) => extent = rest,
                None => return Ok(None),
            }
        }
        let mut buffer = [0; HEADER_SIZE + TRAILER.len()];
        let start = extent.read_start(&mut buffer)?;
        match Entry::parse(start) {
            Some(entry) if entry.size() <= extent.size() => {
                in_archive = !entry.is_trailer;
                extent = extent.after(entry.size());
            }
            // The trailer's padding may be missing.
            Some(entry) if entry.is_trailer => return Ok(None),
            Some(_) => return Err(InitrdFault::CutOff { wrapper: WRAPPER }),
            None if !in_archive => return Ok(Some(extent)),
            None if start.len() < HEADER_SIZE => {
                return Err(InitrdFault::CutOff { wrapper: WRAPPER });
            }
            None => return Err(InitrdFault::Damaged { wrapper: WRAPPER }),
        }
    }
}

/// The first byte that isn't zero and what follows; `None` where there is none nearby.
fn skip_zeroes(mut extent: Extent<'_>) -> Result<Option<Extent<'_>>, InitrdFault> {
    let mut buffer = [0; 4096];
    for _ in 0..MAX_PADDING / buffer.len() {
        let bytes = extent.read_start(&mut buffer)?;
        if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
            return Ok(Some(extent.after(at as u64)));
        }
        let read = bytes.len() as u64;
        if read == 0 {
            break;
        }
        extent = extent.after(read);
    }
    Ok(None)
}

/// An entry: header, name and file.
struct Entry {
    name_size: u64,
    file_size: u64,
    is_trailer: bool,
}

impl Entry {
    /// The entry whose first bytes these are.
    fn parse(start: &[u8]) -> Option<Self> {
        let header = start.get(..HEADER_SIZE)?;
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            return None;
        }
        // Eight digits each behind the magic number: c_filesize is the 7th, c_namesize the 12th.
        let field = |index: usize| {
            let at = index.checked_mul(8)?.checked_add(6)?;
            let digits = std::str::from_utf8(header.get(at..at.checked_add(8)?)?).ok()?;
            u32::from_str_radix(digits, 16).ok().map(u64::from)
        };
        let (file_size, name_size) = (field(6)?, field(11)?);
        let is_trailer = start.get(HEADER_SIZE..).is_some_and(|name| name.starts_with(TRAILER));
        Some(Self { name_size, file_size, is_trailer })
    }

    /// All its bytes: the name and the file each end at a multiple of 4.
    fn size(&self) -> u64 {
        let aligned = |n: u64| n.next_multiple_of(4);
        // 32-bit fields can't overflow 64 bits.
        aligned(HEADER_SIZE as u64 + self.name_size) + aligned(self.file_size)
    }
}
