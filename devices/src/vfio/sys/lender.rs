//! Mappings of a file that somebody else may give up: they become memory of ones.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The largest piece in which mappings are replaced, in bytes; a piece is memory of its own once the
/// guest writes to it.
const PIECE: usize = 2 << 20;

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
    pub(super) fn add(&self, address: NonNull<u8>, size: usize) {
        let mut account = self.account();
        account.lent.push((address.as_ptr().expose_provenance(), size));
        if account.withdrawn {
            replace(&account);
        }
    }

    /// Forgets a mapping and has it undone, while it can't be withdrawn.
    pub(super) fn remove(&self, address: NonNull<u8>, undo: impl FnOnce() -> i32) -> i32 {
        let mut account = self.account();
        account.lent.retain(|(lent, _)| *lent != address.addr().get());
        undo()
    }

    /// Withdraws all mappings, and those to come.
    pub fn withdraw(&self) {
        let mut account = self.account();
        account.withdrawn = true;
        replace(&account);
    }
}

/// Puts ones in the place of all mappings.
fn replace(account: &Account) {
    if account.lent.is_empty() {
        return;
    }
    let Some(ones) = ones() else { return };
    for (address, size) in &account.lent {
        for at in (0..*size).step_by(PIECE) {
            let length = PIECE.min(size.saturating_sub(at));
            // SAFETY: within a mapping that is ours until it is removed, which the account's lock
            // keeps from happening; it is accessed as memory that may change at any time.
            let placed = unsafe {
                let place = std::ptr::with_exposed_provenance_mut(address.saturating_add(at));
                let (protection, flags) =
                    (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED);
                libc::mmap(place, length, protection, flags, ones.as_raw_fd(), 0)
            };
            if placed == libc::MAP_FAILED {
                log::warn!("a failed device's registers stay: {}", std::io::Error::last_os_error());
                return;
            }
        }
    }
}

/// A file of [`PIECE`] bytes that are all ones.
fn ones() -> Option<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"strait-failed".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: just made for us; nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let page = [0xff; 4096];
    (0..PIECE / page.len()).try_for_each(|_| file.write_all(&page)).ok()?;
    Some(file)
}
