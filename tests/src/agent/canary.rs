//! A page of host memory at a known physical address, to see whether anybody writes to it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use crate::{CommandError, devmem};

/// What is looked after at a time; the kernel's pages have this size or a multiple.
const PAGE: usize = 4096;
/// Memory taken at a time while looking for a page that fits.
const CHUNK: usize = 16 << 20;
/// What is taken at most.
const MAX_MEMORY: usize = 1 << 30;

/// The bits of an entry of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// Fills a locked page whose physical address is in `low..high`, prints `canary 0xADDRESS`, waits
/// for a line of input, and fails if the page has changed.
pub(crate) fn watch(low: u64, high: u64) -> Result<(), CommandError> {
    let pagemap = File::open("/proc/self/pagemap")?;
    // Chunks that don't fit are kept, so that the kernel gives others.
    let mut chunks = Vec::new();
    while chunks.len() * CHUNK < MAX_MEMORY {
        let chunk = Locked::new()?;
        let found = chunk.pages().find_map(|(index, address)| {
            let physical = physical(&pagemap, address).ok()?;
            (low..high).contains(&physical).then_some((index, physical))
        });
        if let Some((index, physical)) = found {
            return guard(&chunk, index, physical);
        }
        chunks.push(chunk);
    }
    Err(format!("found no page in {low:#x}..{high:#x}").into())
}

fn guard(chunk: &Locked, index: usize, physical: u64) -> Result<(), CommandError> {
    chunk.fill(index);
    println!("canary {physical:#x}");
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new())?;
    match chunk.first_change(index) {
        None => {
            println!("intact");
            Ok(())
        }
        Some(offset) => Err(format!("changed at {:#x}", physical + offset).into()),
    }
}

/// The physical address behind a virtual one of this process.
pub(crate) fn physical(pagemap: &File, address: usize) -> Result<u64, CommandError> {
    let mut entry = [0; size_of::<u64>()];
    let (address, page) = (u64::try_from(address)?, devmem::page_size());
    let offset = address / page * u64::try_from(size_of::<u64>())?;
    pagemap.read_exact_at(&mut entry, offset)?;
    let entry = u64::from_le_bytes(entry);
    if entry & PRESENT == 0 || entry & FRAME == 0 {
        return Err("the kernel doesn't say where the page is".into());
    }
    Ok((entry & FRAME) * page + address % page)
}

/// Anonymous memory that stays where it is.
struct Locked {
    base: *mut u8,
}

impl Locked {
    fn new() -> io::Result<Self> {
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                CHUNK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast() })
    }

    /// The pages: index and virtual address.
    fn pages(&self) -> impl Iterator<Item = (usize, usize)> {
        let base = self.base.addr();
        (0..CHUNK / PAGE).map(move |index| (index, base + index * PAGE))
    }

    fn fill(&self, page: usize) {
        for offset in 0..PAGE {
            // SAFETY: `page` came from `pages`, so that the byte lies in the mapping.
            unsafe { self.base.add(page * PAGE + offset).write_volatile(pattern(offset)) };
        }
    }

    /// The offset of the first byte of a page that is not what `fill` wrote.
    fn first_change(&self, page: usize) -> Option<u64> {
        (0..PAGE)
            .find(|&offset| {
                // SAFETY: as above.
                let byte = unsafe { self.base.add(page * PAGE + offset).read_volatile() };
                byte != pattern(offset)
            })
            .and_then(|offset| u64::try_from(offset).ok())
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody has a pointer into it.
        unsafe { libc::munmap(self.base.cast(), CHUNK) };
    }
}

/// A byte that neither zeroes nor a shifted copy of the page would match.
fn pattern(offset: usize) -> u8 {
    u8::try_from(offset % 251).unwrap_or_default() ^ 0xc3
}
