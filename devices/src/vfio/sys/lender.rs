//! Mappings of a file that somebody else may give up: they become memory of strait's own.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How much may be lent in all, in bytes: once it is withdrawn, a guest can fill as much of this
/// host's memory.
const MOST_BYTES: usize = 64 << 30;

/// How many mappings may be lent: each is one of this process's, and one of KVM's memory slots.
const MOST_MAPPINGS: usize = 256;

/// How much of a withdrawn mapping reads as ones, in bytes from its start, and how much of all of
/// them: so much memory is filled. The rest reads as zeros.
const ONES: usize = 2 << 20;
const ALL_ONES: usize = 16 << 20;

/// Keeps account of mappings that are lent, so that they can be withdrawn: their addresses stay
/// valid, and what is there reads as ones.
#[derive(Debug, Default)]
pub struct Lender(Mutex<Account>);

#[derive(Debug, Default)]
struct Account {
    /// Address and size of each mapping.
    lent: Vec<(usize, usize)>,
    withdrawn: bool,
}

impl Lender {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a mapping into account.
    pub(super) fn add(&self, address: NonNull<u8>, size: usize) -> io::Result<()> {
        let mut account = self.account();
        let all = account.lent.iter().fold(size, |sum, (_, size)| sum.saturating_add(*size));
        if account.lent.len() >= MOST_MAPPINGS {
            return Err(io::Error::other(format!("more than {MOST_MAPPINGS} areas are lent")));
        }
        if all > MOST_BYTES {
            let gib = MOST_BYTES >> 30;
            return Err(io::Error::other(format!("more than {gib} GiB are lent")));
        }
        let mapping = (address.as_ptr().expose_provenance(), size);
        if account.withdrawn {
            replace(&[mapping])?;
        }
        account.lent.push(mapping);
        Ok(())
    }

    /// Forgets a mapping and has it undone, while it can't be withdrawn.
    pub(super) fn remove(&self, address: NonNull<u8>, undo: impl FnOnce() -> i32) -> i32 {
        let mut account = self.account();
        account.lent.retain(|(lent, _)| *lent != address.addr().get());
        undo()
    }

    /// Withdraws all mappings, and those to come.
    ///
    /// # Errors
    ///
    /// The kernel doesn't let some be replaced: these may stay as they are.
    pub fn withdraw(&self) -> io::Result<()> {
        let mut account = self.account();
        account.withdrawn = true;
        replace(&account.lent)
    }
}

/// Puts memory that begins with ones in the place of these mappings, each by one mapping.
///
/// Of one file and shared, so that nothing of it counts towards what the host has promised
/// (Documentation/mm/overcommit-accounting.rst) before it is used.
fn replace(lent: &[(usize, usize)]) -> io::Result<()> {
    if lent.is_empty() {
        return Ok(());
    }
    let ones = ONES.min(ALL_ONES / lent.len());
    let (file, mut offset, mut result) = (memory()?, 0u64, Ok(()));
    for (address, size) in lent {
        // One that can't be replaced doesn't keep the others.
        let replaced = fill(&file, offset, *size, ones).and_then(|()| {
            let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            // SAFETY: a mapping that is ours until it is removed, which the account's lock keeps
            // from happening; it is accessed as memory that may change at any time.
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

/// A file in memory.
fn memory() -> io::Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"strait-failed".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made for us; nobody else owns it.
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
    fn a_large_mapping_is_withdrawn_by_one_mapping() {
        const SIZE: u64 = 16 << 30;
        let (file, lender) = (memory().unwrap(), Arc::new(Lender::default()));
        file.set_len(SIZE).unwrap();
        let large = Mapping::lent(&file, &region(SIZE), 0..SIZE, &lender).unwrap();
        let small = Mapping::lent(&file, &region(SIZE), 0..0x1000, &lender).unwrap();
        large.write(0x1_0000, 7);
        lender.withdraw().unwrap();
        let start = large.address().addr().get();
        assert_eq!(mappings(start, start + usize::try_from(SIZE).unwrap()), 1);
        assert_eq!(large.read(0x1_0000), u64::MAX);
        assert_eq!(large.read(0), u64::MAX);
        assert_eq!(large.read(usize::try_from(SIZE).unwrap() - 8), 0);
        assert_eq!(small.read(0xff8), u64::MAX);
        // Each is memory of its own.
        small.write(0, 1);
        assert_eq!(large.read(0), u64::MAX);
        // What is lent afterwards is withdrawn at once.
        let late = Mapping::lent(&file, &region(SIZE), 0x1000..0x3000, &lender).unwrap();
        assert_eq!(late.read(0x1ff8), u64::MAX);
    }

    #[test]
    fn what_is_lent_has_bounds() {
        let (file, lender) = (memory().unwrap(), Arc::new(Lender::default()));
        file.set_len(65 << 30).unwrap();
        let lent = |range| Mapping::lent(&file, &region(65 << 30), range, &lender);
        let error = lent(0..65 << 30).unwrap_err();
        assert!(error.to_string().contains("64 GiB"), "{error}");
        let half = lent(0..32 << 30).unwrap();
        let _other = lent(0..32 << 30).unwrap();
        lent(0..0x1000).unwrap_err();
        drop(half);
        let all: Vec<_> = (1..MOST_MAPPINGS).map(|_| lent(0..0x1000).unwrap()).collect();
        let error = lent(0..0x1000).unwrap_err();
        assert!(error.to_string().contains("256 areas"), "{error}");
        lender.withdraw().unwrap();
        assert!(all.iter().all(|mapping| mapping.read(0xff8) == u64::MAX));
    }

    #[test]
    fn what_cannot_be_withdrawn_is_told_and_keeps_nothing_else() {
        let (file, lender) = (memory().unwrap(), Arc::new(Lender::default()));
        file.set_len(0x1000).unwrap();
        // No page begins here: the kernel refuses.
        lender.0.lock().unwrap().lent.push((0x1001, 0x1000));
        let mapping = Mapping::lent(&file, &region(0x1000), 0..0x1000, &lender).unwrap();
        let error = lender.withdraw().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(mapping.read(0), u64::MAX);
    }
}
