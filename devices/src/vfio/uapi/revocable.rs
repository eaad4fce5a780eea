//! Mappings of a file that its server may stop serving (vfio-user): revoked, they become anonymous
//! memory.

use crate::sync;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard};

/// How much may be mapped in all, in bytes: once it is revoked, a guest can fill as much of this
/// host's memory.
const MAX_BYTES: usize = 64 << 30;

/// How many mappings there may be: each is one of this process's, and one of KVM's memory slots.
const MAX_MAPPINGS: usize = 256;

/// How much of a revoked mapping reads as ones, in bytes from its start, and how much of all of them:
/// so much memory is written. The rest reads as zeros.
const MAX_ONES_EACH: usize = 2 << 20;
const MAX_ONES: usize = 16 << 20;

/// The mappings of one file, which can be revoked: their addresses stay valid, and they read as ones,
/// as a PCI device that is gone does.
#[derive(Debug, Default)]
pub struct RevocableMappings(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Address and size of each mapping.
    mappings: Vec<(usize, usize)>,
    /// The file that replaces them: made with the first, as that can't be done any more when a guest runs.
    ones: Option<File>,
    revoked: bool,
}

impl RevocableMappings {
    fn state(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.0)
    }

    /// Adds a mapping; replaces it at once if the others have been revoked.
    pub(super) fn add(&self, address: NonNull<u8>, size: usize) -> io::Result<()> {
        let mut state = self.state();
        let all = state.mappings.iter().fold(size, |sum, (_, size)| sum.saturating_add(*size));
        if state.mappings.len() >= MAX_MAPPINGS {
            return Err(io::Error::other(format!("more than {MAX_MAPPINGS} areas are mapped")));
        }
        if all > MAX_BYTES {
            let gib = MAX_BYTES >> 30;
            return Err(io::Error::other(format!("more than {gib} GiB are mapped")));
        }
        let mapping = (address.as_ptr().expose_provenance(), size);
        if state.revoked {
            replace(&[mapping], &memfd(c"strait-revoked")?)?;
        } else if state.ones.is_none() {
            state.ones = Some(memfd(c"strait-revoked")?);
        }
        state.mappings.push(mapping);
        Ok(())
    }

    /// Removes a mapping, which is about to be unmapped.
    pub(super) fn remove(&self, address: NonNull<u8>) {
        self.state().mappings.retain(|(mapped, _)| *mapped != address.addr().get());
    }

    /// Revokes all mappings, and those to come.
    ///
    /// # Errors
    ///
    /// `mmap(2)` refuses to replace some, which stay as they are.
    pub fn revoke(&self) -> io::Result<()> {
        let mut state = self.state();
        state.revoked = true;
        state.ones.take().map_or(Ok(()), |ones| replace(&state.mappings, &ones))
    }
}

/// Replaces each of these mappings by one of memory that begins with ones: of a `file` in memory, so that
/// none of it counts as committed memory (Documentation/mm/overcommit-accounting.rst) before it is used.
fn replace(mappings: &[(usize, usize)], file: &File) -> io::Result<()> {
    let ones = MAX_ONES_EACH.min(MAX_ONES / mappings.len().max(1));
    let (mut offset, mut result) = (0u64, Ok(()));
    for (address, size) in mappings {
        // A failure doesn't stop the others.
        let replaced = fill(file, offset, *size, ones).and_then(|()| {
            let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            // SAFETY: a mapping of ours until it is removed, which the lock prevents; it is only
            // accessed as memory that may change at any time.
            let placed = unsafe {
                let place = std::ptr::with_exposed_provenance_mut(*address);
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
                libc::mmap(place, *size, protection, flags, file.as_raw_fd(), offset)
            };
            if placed == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
        result = result.and(replaced);
        offset = offset.saturating_add(u64::try_from(*size).unwrap_or(u64::MAX));
    }
    result
}

/// Makes the file `size` bytes longer than `offset`, of which up to `ones` are all ones.
fn fill(file: &File, offset: u64, size: usize, ones: usize) -> io::Result<()> {
    let end = u64::try_from(size).ok().and_then(|size| offset.checked_add(size));
    file.set_len(end.ok_or(io::ErrorKind::InvalidInput)?)?;
    let page = [0xff; 4096];
    let mut at = offset;
    for part in (0..size.min(ones)).step_by(page.len()) {
        let length = page.len().min(size.saturating_sub(part));
        file.write_all_at(page.get(..length).unwrap_or_default(), at)?;
        at = at.saturating_add(4096);
    }
    Ok(())
}

/// An empty file in memory (`memfd_create(2)`).
pub(crate) fn memfd(name: &CStr) -> io::Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made just now, and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Mapping, RegionInfo};
    use super::*;

    fn region(size: u64) -> RegionInfo {
        RegionInfo { size, readable: true, writable: true, mappable: true, ..Default::default() }
    }

    /// How many mappings this process has from `start` on, up to `end`.
    fn mappings(start: usize, end: usize) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let first = |line: &str| usize::from_str_radix(line.split_once('-')?.0, 16).ok();
        maps.lines().filter_map(first).filter(|first| (start..end).contains(first)).count()
    }

    #[test]
    fn a_large_mapping_is_replaced_by_one_mapping() {
        const SIZE: u64 = 16 << 30;
        let (file, revocable) = (memfd(c"test").unwrap(), Arc::new(RevocableMappings::default()));
        file.set_len(SIZE).unwrap();
        let large = Mapping::revocable(&file, &region(SIZE), 0..SIZE, &revocable).unwrap();
        let small = Mapping::revocable(&file, &region(SIZE), 0..0x1000, &revocable).unwrap();
        large.write(0x1_0000, 7);
        revocable.revoke().unwrap();
        let start = large.address().addr().get();
        assert_eq!(mappings(start, start + usize::try_from(SIZE).unwrap()), 1);
        assert_eq!(large.read(0x1_0000), u64::MAX);
        assert_eq!(large.read(0), u64::MAX);
        assert_eq!(large.read(usize::try_from(SIZE).unwrap() - 8), 0);
        assert_eq!(small.read(0xff8), u64::MAX);
        // Each is memory of its own.
        small.write(0, 1);
        assert_eq!(large.read(0), u64::MAX);
        // What is mapped afterwards is replaced at once.
        let late = Mapping::revocable(&file, &region(SIZE), 0x1000..0x3000, &revocable).unwrap();
        assert_eq!(late.read(0x1ff8), u64::MAX);
    }

    #[test]
    fn the_number_and_size_of_mappings_have_limits() {
        let (file, revocable) = (memfd(c"test").unwrap(), Arc::new(RevocableMappings::default()));
        file.set_len(65 << 30).unwrap();
        let map = |range| Mapping::revocable(&file, &region(65 << 30), range, &revocable);
        let error = map(0..65 << 30).unwrap_err();
        assert!(error.to_string().contains("64 GiB"), "{error}");
        let half = map(0..32 << 30).unwrap();
        let _other = map(0..32 << 30).unwrap();
        map(0..0x1000).unwrap_err();
        drop(half);
        let all: Vec<_> = (1..MAX_MAPPINGS).map(|_| map(0..0x1000).unwrap()).collect();
        let error = map(0..0x1000).unwrap_err();
        assert!(error.to_string().contains("256 areas"), "{error}");
        revocable.revoke().unwrap();
        assert!(all.iter().all(|mapping| mapping.read(0xff8) == u64::MAX));
    }

    #[test]
    fn a_failure_to_replace_one_is_reported_and_the_others_are_replaced() {
        let (file, revocable) = (memfd(c"test").unwrap(), Arc::new(RevocableMappings::default()));
        file.set_len(0x1000).unwrap();
        // No page begins here: the kernel refuses.
        revocable.0.lock().unwrap().mappings.push((0x1001, 0x1000));
        let mapping = Mapping::revocable(&file, &region(0x1000), 0..0x1000, &revocable).unwrap();
        let error = revocable.revoke().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(mapping.read(0), u64::MAX);
    }
}
