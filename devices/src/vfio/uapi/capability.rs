//! The capability chains that follow VFIO's structures (`struct vfio_info_cap_header`).

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::ioctl_with_mut_ptr;

use super::{IoctlError, Request, argsz};

/// The largest structure with capabilities that is accepted, in bytes: room for thousands of ranges.
const MAX_ANSWER: usize = 1 << 20;

/// The capabilities of a structure (`bytes`), from the one at offset `first`: the ID of each, and the
/// bytes from its header to the end of the structure. A malformed chain ends where it is malformed.
pub(super) fn capabilities(bytes: &[u8], first: u32) -> impl Iterator<Item = (u32, &[u8])> {
    let mut next = first;
    let follow = move || {
        let at = usize::try_from(next).ok().filter(|at| *at != 0)?;
        let capability = bytes.get(at..)?;
        // A whole header: ID, version, offset of the next.
        let [low, high, ..] = *capability.first_chunk::<8>()?;
        next = u32_at(capability, 4)?;
        Some((u32::from(u16::from_ne_bytes([low, high])), capability))
    };
    // A capability takes at least 8 bytes, so a longer chain is a cycle.
    std::iter::from_fn(follow).take(bytes.len() / 8)
}

/// The answer to `request`: a structure `T` with its capabilities, whose third field is `index` where
/// the request takes one.
pub(super) fn answer<T>(
    file: &impl AsRawFd,
    request: Request,
    index: u32,
) -> Result<Vec<u8>, IoctlError> {
    let mut size = argsz::<T>();
    loop {
        let mut bytes = [size, 0, index].map(u32::to_ne_bytes).concat();
        bytes.resize(usize::try_from(size).unwrap_or(MAX_ANSWER), 0);
        // SAFETY: the kernel writes at most `size` bytes, the length of `bytes`.
        let returned = unsafe { ioctl_with_mut_ptr(file, request.number, bytes.as_mut_ptr()) };
        request.check(returned)?;
        // With capabilities the kernel asks for more room than it was given, once.
        let wanted = u32_at(&bytes, 0).unwrap_or(0);
        if wanted <= size || size > argsz::<T>() {
            return Ok(bytes);
        }
        if usize::try_from(wanted).is_ok_and(|wanted| wanted > MAX_ANSWER) {
            let why = "the kernel's answer is larger than 1 MiB";
            return Err(request.refused(io::ErrorKind::InvalidData, why));
        }
        size = wanted;
    }
}

/// The 32-bit field at this offset.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

/// The array of a capability: its length at offset 8, from 16 on pairs of 64-bit fields.
pub(super) fn pairs(capability: &[u8]) -> Option<impl Iterator<Item = (u64, u64)>> {
    let count = usize::try_from(u32_at(capability, 8)?).ok()?;
    let pairs = capability.get(16..)?.chunks_exact(16).take(count);
    Some(pairs.filter_map(|pair| Some((u64_at(pair, 0)?, u64_at(pair, 8)?))))
}

/// The 64-bit field at this offset.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u64::from_ne_bytes(*chunk))
}
