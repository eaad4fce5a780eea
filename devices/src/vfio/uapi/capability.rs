//! The capability chains that follow VFIO's structures (`struct vfio_info_cap_header`).

use std::io;

use super::{IoctlError, Request};

/// The most that a structure with its capabilities may take, in bytes: thousands of ranges. More
/// is taken for nonsense.
const MAX_ANSWER: usize = 1 << 20;

/// The capabilities of a structure, of which `bytes` are all, from the one at `first`: the identity
/// of each and what there is from its header on. A chain that breaks ends where it breaks.
pub(super) fn capabilities(bytes: &[u8], first: u32) -> impl Iterator<Item = (u32, &[u8])> {
    let mut next = first;
    let follow = move || {
        let at = usize::try_from(next).ok().filter(|at| *at != 0)?;
        let capability = bytes.get(at..)?;
        // Only a whole header counts: identity, version, next.
        let [low, high, ..] = *capability.first_chunk::<8>()?;
        next = u32_at(capability, 4)?;
        Some((u32::from(u16::from_ne_bytes([low, high])), capability))
    };
    // Every capability takes 8 bytes at least, so a longer chain goes in circles.
    std::iter::from_fn(follow).take(bytes.len() / 8)
}

/// Room for a structure with its capabilities: `wanted` bytes, as the kernel asked for, but at
/// least `least`, and the structure's first field, `argsz`, set accordingly.
pub(super) fn room(request: Request, wanted: u32, least: usize) -> Result<Vec<u64>, IoctlError> {
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    if wanted > MAX_ANSWER {
        return Err(
            request.refused(io::ErrorKind::InvalidData, "the kernel's answer is larger than 1 MiB")
        );
    }
    // Of u64, for the structure's alignment.
    let mut words = vec![0u64; wanted.max(least).div_ceil(8)];
    #[expect(clippy::cast_possible_truncation, reason = "bounded by MAX_ANSWER")]
    let size = (words.len() * 8) as u32;
    if let Some(first) = words.first_mut() {
        *first = pair(size, 0);
    }
    Ok(words)
}

/// Two neighbouring 32-bit fields as they lie in memory.
pub(super) fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// The bytes of words as they lie in memory.
pub(super) fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u64::from_ne_bytes(*chunk))
}
