//! Has the host give a guest's RAM before the guest runs, by several threads.
//!
//! Pinning RAM for DMA takes all of its pages, one by one on one CPU, and nearly all of that time is
//! spent on clearing them. What is there already is pinned in a fraction of it.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arch::{GuestRam, RamPages};
use devices::stop;
use devices::vfio::region::host_page_size;

use crate::cli::Size;
use crate::error::Error;
use crate::{limits, output};

/// How much a thread takes at once, in bytes: some milliseconds, between which signals are heard.
const CHUNK: usize = 32 << 20;

/// As many CPUs as this clear memory as fast as most hosts can.
const MAX_THREADS: u64 = 16;

/// After this time people are told how far it is, and whenever it has doubled.
const FIRST_REPORT: Duration = Duration::from_secs(1);

/// Populates all of `ram`, whose pages are of this kind, and into which nothing has been put yet.
///
/// # Errors
///
/// The host has too little memory, or a signal ends strait.
#[cold]
pub fn populate(ram: &GuestRam, pages: RamPages) -> Result<(), Error> {
    let size = ram.size();
    let page = match pages {
        RamPages::Reserved(page) => usize::try_from(page).unwrap_or(usize::MAX),
        RamPages::Any | RamPages::Transparent => 1,
    };
    let work = Work::new(size, CHUNK.max(page), |offset, length| {
        stop::check()?;
        // SAFETY: `offset` and `length` are of a part of RAM, which stays mapped; nobody else has it.
        unsafe { populate_part(ram, pages, offset, length) }
    });
    let threads = limits::cpus().unwrap_or(1).min(MAX_THREADS);
    let done = work.run(usize::try_from(threads).unwrap_or(1), |done, elapsed| {
        let (done, all) = (Size(done as u64), Size(size as u64));
        output::say(&format!(
            "strait: taking memory for the guest: {done:#} of {all:#} in {} s\n",
            elapsed.as_secs()
        ));
    });
    done.map_err(|error| {
        if stop::is_requested() {
            return error.into();
        }
        let size = Size(size as u64);
        let error = Error::new(format!("the host can't give {size} of guest RAM: {error}"));
        error.help(match pages {
            RamPages::Reserved(_) => "grep . /sys/kernel/mm/hugepages/*/* shows what there is",
            RamPages::Any | RamPages::Transparent => "a smaller --memory, or free some: `free -m`",
        })
    })
}

/// Populates `length` bytes from `offset` on (madvise(2), `MADV_POPULATE_WRITE`, Linux 5.14).
///
/// # Safety
///
/// They are a part of `ram`, into which nothing has been put yet and which nobody else has.
unsafe fn populate_part(
    ram: &GuestRam,
    pages: RamPages,
    offset: usize,
    length: usize,
) -> io::Result<()> {
    // SAFETY: `offset` lies within RAM, as the caller promises.
    let start = unsafe { ram.host_address().add(offset) };
    loop {
        // SAFETY: the range is mapped, and its contents stay what they are.
        let result =
            unsafe { libc::madvise(start.as_ptr().cast(), length, libc::MADV_POPULATE_WRITE) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => stop::check()?,
            // An older kernel, or one without CONFIG_ADVISE_SYSCALLS. To touch a huge page that it
            // hasn't would end this process; pinning tells.
            Some(libc::EINVAL | libc::ENOSYS) if pages.are_reserved() => return Ok(()),
            Some(libc::EINVAL | libc::ENOSYS) => break,
            // For memory that can't be had, as madvise(2) has it.
            Some(libc::EFAULT) => return Err(io::ErrorKind::OutOfMemory.into()),
            _ => return Err(error),
        }
    }
    // SAFETY: as the caller promises.
    unsafe { touch(start, length) };
    Ok(())
}

/// Writes a zero into each page of `length` bytes. To read it first would map the host's page of zeros,
/// which a huge page then doesn't take the place of.
///
/// # Safety
///
/// They are mapped, zeros, and nobody else's.
unsafe fn touch(start: NonNull<u8>, length: usize) {
    let step = usize::try_from(host_page_size()).unwrap_or(4096);
    for at in (0..length).step_by(step) {
        // SAFETY: `at` is less than `length`; the rest is the caller's promise.
        unsafe { AtomicU8::from_ptr(start.add(at).as_ptr()) }.store(0, Ordering::Relaxed);
    }
}

/// Bytes on which threads work, a chunk at a time.
struct Work<F> {
    size: usize,
    chunk: usize,
    work: F,
    next: AtomicUsize,
    done: AtomicUsize,
    failed: AtomicBool,
    error: OnceLock<io::Error>,
}

impl<F: Fn(usize, usize) -> io::Result<()> + Sync> Work<F> {
    /// `size` bytes; `work` is called with offset and length of each chunk.
    fn new(size: usize, chunk: usize, work: F) -> Self {
        let (next, done, failed, error) = Default::default();
        Self { size, chunk: chunk.max(1), work, next, done, failed, error }
    }

    /// Does it with at most so many threads, this one among them, which reports now and then how many
    /// bytes are done.
    fn run(self, threads: usize, mut report: impl FnMut(usize, Duration)) -> io::Result<()> {
        let threads = threads.min(self.size.div_ceil(self.chunk));
        let (started, mut next_report) = (Instant::now(), FIRST_REPORT);
        thread::scope(|scope| {
            for _ in 1..threads {
                let thread = thread::Builder::new().name("populate".into());
                // With fewer threads it takes longer.
                let _ = thread.spawn_scoped(scope, || while self.step() {});
            }
            while self.step() {
                let elapsed = started.elapsed();
                if elapsed >= next_report {
                    report(self.done.load(Ordering::Relaxed), elapsed);
                    next_report = elapsed.saturating_mul(2);
                }
            }
        });
        self.error.into_inner().map_or(Ok(()), Err)
    }

    /// Does one chunk; whether there may be more.
    fn step(&self) -> bool {
        if self.failed.load(Ordering::Relaxed) {
            return false;
        }
        let offset = self.next.fetch_add(self.chunk, Ordering::Relaxed);
        let Some(left) = self.size.checked_sub(offset).and_then(NonZeroUsize::new) else {
            return false;
        };
        let length = left.get().min(self.chunk);
        match (self.work)(offset, length) {
            Ok(()) => {
                self.done.fetch_add(length, Ordering::Relaxed);
                true
            }
            Err(error) => {
                self.failed.store(true, Ordering::Relaxed);
                // The first says why.
                let _ = self.error.set(error);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use boot::layout::Ram;

    use super::*;

    const RAM: Ram = Ram { base: 1 << 30, size: (3 * CHUNK + (1 << 20)) as u64 };

    /// How many pages of RAM the host has given.
    fn resident(ram: &GuestRam) -> u64 {
        let mut pages = vec![0u8; usize::try_from(pages()).unwrap()];
        let address = ram.host_address().as_ptr().cast();
        // SAFETY: `address` is that of all of RAM, for each page of which `pages` has a byte
        // (mincore(2)).
        let ret = unsafe { libc::mincore(address, ram.size(), pages.as_mut_ptr()) };
        assert_eq!(ret, 0);
        pages.iter().map(|page| u64::from(page & 1)).sum()
    }

    fn pages() -> u64 {
        RAM.size / devices::vfio::region::host_page_size()
    }

    // For arm64 tests run in qemu-user, whose madvise(2) answers success and does nothing.
    #[cfg(not(target_arch = "aarch64"))]
    #[test]
    fn all_of_ram_is_there() {
        let ram = GuestRam::new(RAM, RamPages::Any).unwrap();
        assert!(resident(&ram) < pages());
        populate(&ram, RamPages::Any).unwrap();
        assert_eq!(resident(&ram), pages());
    }

    #[test]
    fn pages_that_are_touched_are_there() {
        let ram = GuestRam::new(RAM, RamPages::Any).unwrap();
        // SAFETY: new RAM, which is zeros and nobody else's.
        unsafe { touch(ram.host_address(), ram.size()) };
        assert_eq!(resident(&ram), pages());
    }

    #[test]
    fn each_byte_is_worked_on_once() {
        for (size, threads) in [(1000, 4), (1000, 1), (1001, 3), (7, 9), (0, 2)] {
            let parts = Mutex::new(Vec::new());
            let work = Work::new(size, 10, |offset, length| {
                parts.lock().unwrap().push((offset, length));
                Ok(())
            });
            work.run(threads, |_, _| {}).unwrap();
            let mut parts = parts.into_inner().unwrap();
            parts.sort_unstable();
            let end = parts.iter().try_fold(0, |end, (offset, length)| {
                (*offset == end && *length > 0).then_some(end + length)
            });
            assert_eq!(end, Some(size), "{parts:?}");
        }
    }

    #[test]
    fn a_failure_ends_it_and_says_why() {
        let calls = AtomicUsize::new(0);
        let work = Work::new(1 << 30, 1, |offset, _| {
            calls.fetch_add(1, Ordering::Relaxed);
            if offset == 5 { Err(io::Error::from_raw_os_error(libc::ENOMEM)) } else { Ok(()) }
        });
        let error = work.run(3, |_, _| {}).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        assert!(calls.into_inner() < 1 << 29);
    }

    #[test]
    fn what_takes_long_is_reported() {
        let mut reports = Vec::new();
        let work = Work::new(30, 1, |_, _| {
            thread::sleep(Duration::from_millis(75));
            Ok(())
        });
        work.run(1, |done, elapsed| reports.push((done, elapsed))).unwrap();
        let first = reports.first().unwrap();
        assert!(first.0 > 0 && first.0 < 30 && first.1 >= FIRST_REPORT, "{reports:?}");
        assert!(reports.len() < 3, "{reports:?}");
    }
}
