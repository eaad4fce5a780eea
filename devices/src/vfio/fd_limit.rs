//! The limit of open file descriptors (`RLIMIT_NOFILE`): each MSI vector of a device takes one, each
//! level-triggered line two.

use boot::help::Help;
use std::fs;

use super::remedy;

/// How many descriptors are assumed to be open; they are counted only if the limit is near.
const ASSUMED_OPEN: u64 = 128;

/// The limit is lower than what is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{needed} file descriptors are needed, and this process may have {limit} open (RLIMIT_NOFILE)"
)]
pub struct FdLimitTooLow {
    /// How many are needed, with those that are open already.
    pub needed: u64,
    /// The hard limit.
    pub limit: u64,
}

impl Help for FdLimitTooLow {
    fn help(&self) -> Option<String> {
        Some(remedy::open_files(self.needed))
    }
}

/// Makes sure that this process can open `more` descriptors, by raising the soft limit to the hard one if
/// needed.
///
/// # Errors
///
/// The hard limit is lower.
pub fn reserve(more: u64) -> Result<(), FdLimitTooLow> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one `rlimit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Ok(());
    }
    if more.saturating_add(ASSUMED_OPEN) <= limit.rlim_cur {
        return Ok(());
    }
    let needed = more.saturating_add(open().unwrap_or(limit.rlim_cur));
    let Some(raised) = raised(needed, limit)? else { return Ok(()) };
    // SAFETY: reads one `rlimit`. Raising it to the hard limit needs no privilege.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } != 0 {
        return Err(FdLimitTooLow { needed, limit: limit.rlim_cur });
    }
    Ok(())
}

/// The limit with which `needed` descriptors can be open; `None` if it is high enough.
fn raised(needed: u64, limit: libc::rlimit) -> Result<Option<libc::rlimit>, FdLimitTooLow> {
    if needed <= limit.rlim_cur {
        return Ok(None);
    }
    if needed > limit.rlim_max {
        return Err(FdLimitTooLow { needed, limit: limit.rlim_max });
    }
    Ok(Some(libc::rlimit { rlim_cur: limit.rlim_max, ..limit }))
}

/// How many descriptors are open; `None` if none is left to count them.
#[cold]
fn open() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    // One is that of the directory.
    u64::try_from(entries.saturating_sub(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_up_to_the_hard_limit() {
        let limit = |soft, hard| libc::rlimit { rlim_cur: soft, rlim_max: hard };
        let soft = |needed, limit| raised(needed, limit).map(|new| new.map(|new| new.rlim_cur));
        assert_eq!(soft(32, limit(32, 64)), Ok(None));
        assert_eq!(soft(33, limit(32, 64)), Ok(Some(64)));
        assert_eq!(soft(64, limit(32, 64)), Ok(Some(64)));
        assert_eq!(soft(65, limit(32, 64)), Err(FdLimitTooLow { needed: 65, limit: 64 }));
        assert_eq!(soft(9, limit(8, libc::RLIM_INFINITY)), Ok(Some(libc::RLIM_INFINITY)));
        let error = FdLimitTooLow { needed: 65, limit: 64 };
        assert!(error.to_string().contains("65") && error.to_string().contains("64"));
        assert!(error.help().unwrap().contains("ulimit -n 65"));
    }

    #[test]
    fn open_descriptors_are_counted() {
        let before = open().unwrap();
        assert!(before >= 3);
        reserve(1).unwrap();
        assert!(matches!(reserve(u64::MAX), Err(error) if error.needed == u64::MAX));
    }
}
