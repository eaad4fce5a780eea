//! The guest's RAM: its size, its pages and its place.

use arch::{RamPages, layout};
use boot::layout::Ram;

use crate::allocator::Allocator;
use crate::cli::{MemoryOptions, Size};
use crate::error::Error;
use crate::limits;

/// RAM comes in multiples of this: the largest page of any host, so that every page of it can be
/// mapped for DMA.
const GRANULE: u64 = 64 << 10;

/// The most that a guest physical address can be (Arm ARM, D8.1: 52 bits).
const ADDRESSES: u64 = 1 << 52;

/// Checks RAM against what makes sense and what the host has; `shared`, of a file in memory.
///
/// # Errors
///
/// It can't be had so.
pub(super) fn plan(options: MemoryOptions, shared: bool) -> Result<Ram, Error> {
    let ram = of_size(options.size)?;
    limits::check_reservation(ram.size, shared)?;
    if options == MemoryOptions::new(ram.size) {
        return Ok(ram);
    }
    let ram = placed(options)?;
    match options.pages {
        RamPages::Any => {}
        RamPages::Transparent => limits::hugepages::check_transparent(shared)?,
        RamPages::Reserved(page) => limits::hugepages::check_reserved(ram.size, page)?,
    }
    Ok(ram)
}

/// RAM of this size, at the usual address.
fn of_size(size: Size) -> Result<Ram, Error> {
    let bytes = size.bytes();
    if bytes == 0 {
        return Err(Error::usage("--memory 0: a guest needs RAM").help("--memory 256M"));
    }
    if let Some(host) = host_memory().filter(|host| bytes > *host) {
        let host = Size::from(host & !((1 << 20) - 1));
        return Err(Error::new(format!(
            "{size} of guest RAM can't be mapped: this host has {host} of memory and swap"
        ))
        .help("a smaller --memory; `free -m` shows what is left"));
    }
    if !bytes.is_multiple_of(GRANULE) {
        let rounded = Size::from(bytes - bytes % GRANULE + GRANULE);
        return Err(Error::usage(format!("--memory {size} is no multiple of 64K"))
            .help(format!("--memory {rounded}")));
    }
    Ok(Ram { base: layout::RAM_START, size: bytes })
}

/// RAM where it is wanted, of whole huge pages.
#[cold]
fn placed(options: MemoryOptions) -> Result<Ram, Error> {
    let MemoryOptions { size, pages, base } = options;
    let refused = |why: String| Error::usage(format!("--memory {options}: {why}"));
    let alignment = pages.alignment();
    let up = |value: u64| value.checked_next_multiple_of(alignment);
    if let RamPages::Reserved(page) = pages
        && !size.bytes().is_multiple_of(page)
    {
        let rounded = size.bytes().checked_next_multiple_of(page).map(Size::from);
        let error = refused(format!("{size} isn't whole pages of {}", Size(page)));
        return Err(error.maybe_help(
            rounded.map(|size| format!("--memory {}", MemoryOptions { size, ..options })),
        ));
    }
    if !base.is_multiple_of(alignment) {
        let error = refused(format!("base={base:#x} is no multiple of {}", Size(alignment)));
        return Err(error.maybe_help(up(base).map(|base| format!("base={base:#x}"))));
    }
    if base.checked_add(size.bytes()).is_none_or(|end| end > ADDRESSES) {
        let error = refused("it would end beyond 52 bits of address".to_owned());
        return Err(error.help("a lower base="));
    }
    Ok(Ram { base, size: size.bytes() })
}

/// Checks that RAM isn't where the machine has its devices.
///
/// # Errors
///
/// It is; the error names them.
#[cold]
pub(super) fn check_place(options: MemoryOptions, allocator: &Allocator) -> Result<(), Error> {
    let ram = Ram { base: options.base, size: options.size.bytes() };
    allocator.check_ram(ram).map_err(|error| {
        let usual = layout::RAM_START;
        Error::usage(format!("--memory {options}: RAM can't be there: {error}"))
            .help(format!("a base= from {usual:#x} on: nothing else is there"))
    })
}

/// The host's memory and swap in bytes.
fn host_memory() -> Option<u64> {
    let mut info = std::mem::MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: sysinfo fills the structure it is given, or fails.
    if unsafe { libc::sysinfo(info.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: sysinfo succeeded, so the structure is filled.
    let info = unsafe { info.assume_init() };
    // Far below u64::MAX, so that sizes at most as large can be rounded up.
    info.totalram.checked_add(info.totalswap)?.checked_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_that_makes_no_sense_is_refused() {
        for bytes in [0, 1 << 10, (64 << 20) + 4096, u64::MAX, 1 << 60] {
            assert!(of_size(Size::from(bytes)).is_err(), "{bytes:#x}");
        }
        let usual = Ram { base: layout::RAM_START, size: 64 << 20 };
        assert_eq!(plan(MemoryOptions::new(64 << 20), false).unwrap(), usual);
    }

    #[test]
    fn ram_is_placed_in_whole_pages() {
        let placed = |text: &str| super::placed(text.parse().unwrap());
        let high = Ram { base: 1 << 32, size: 64 << 20 };
        assert_eq!(placed("64M,base=0x100000000").unwrap(), high);
        for (text, why, help) in [
            ("64M,base=0x40100000", "base=0x40100000 is no multiple of 2M", "base=0x40200000"),
            ("1G,hugepages=1G,base=0x50000000", "no multiple of 1G", "base=0x80000000"),
            ("64M,hugepages=64K,base=0x10000", "no multiple of 2M", "base=0x200000"),
            ("65M,hugepages=2M", "65M isn't whole pages of 2M", "--memory 66M,hugepages=2M"),
            ("64M,base=0xfffffffe00000", "beyond 52 bits", "a lower base="),
            ("64M,base=0xffffffffffe00000", "beyond 52 bits", "a lower base="),
        ] {
            let report = placed(text).unwrap_err().report();
            assert!(report.contains(why), "{text}: {report}");
            assert!(report.contains(&format!("help: {help}")), "{text}: {report}");
        }
    }

    #[test]
    fn ram_where_something_else_is_is_refused_by_its_name() {
        let check = |text: &str, pci| {
            let options: MemoryOptions = text.parse().unwrap();
            let ram = Ram { base: options.base, size: options.size.bytes() };
            let mut allocator = Allocator::new(ram, true);
            if pci {
                allocator.reserve_pci();
            }
            check_place(options, &allocator).map_err(|error| error.report())
        };
        for text in ["64M,base=0x0", "64M,base=0x20000000", "1G", "4G,base=0x100000000"] {
            assert_eq!(check(text, false), Ok(()), "{text}");
        }
        for (text, pci, other) in [
            ("256M,base=0x0", false, "the interrupt controller"),
            ("2M,base=0x9000000", false, "the RTC"),
            ("64M,base=0x20000000", true, "the PCI host's memory window"),
        ] {
            let report = check(text, pci).unwrap_err();
            assert!(report.contains(&format!("where {other} is")), "{text}: {report}");
        }
    }
}
