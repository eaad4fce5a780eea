//! Memory that a process shares with those that it forks.

use std::io;
use std::ptr;
use std::sync::atomic::AtomicU64;

/// So many words, all zero, of memory that this process and those that it forks from here on share. The
/// host gives it page by page, as it is used; it is never given back.
///
/// # Errors
///
/// The process may have no more memory.
pub fn words(count: usize) -> io::Result<&'static [AtomicU64]> {
    let size = count.checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
    let (access, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    let flags = flags | libc::MAP_NORESERVE;
    // SAFETY: makes a new mapping, wherever there is room.
    let start = unsafe { libc::mmap(ptr::null_mut(), size.max(1), access, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has room for so many words, is aligned to pages, and never unmapped. Zeroes are
    // valid words, and whoever else has the memory accesses it as words of the same kind.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), count) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_child_s_words_are_the_parent_s() {
        let words = words(1000).unwrap();
        assert!(words.len() == 1000 && words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        // SAFETY: the child makes a store and ends, whatever other threads had locked.
        let child = unsafe { libc::fork() };
        if child == 0 {
            words[999].store(7, Ordering::Release);
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: the null pointer asks for no status.
        assert_eq!(unsafe { libc::waitpid(child, ptr::null_mut(), 0) }, child);
        assert_eq!(words[999].load(Ordering::Acquire), 7);
    }

    #[test]
    fn more_than_can_be_addressed_is_refused() {
        assert!(words(usize::MAX).is_err() && words(usize::MAX / 8).is_err());
    }
}
