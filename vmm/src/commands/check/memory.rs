//! Memory: how much may be pinned, how large its pages are.

use std::fs;

use arch::RamPages;
use devices::vfio::iommu::MapError;
use devices::vfio::memlock::Memlock;
use devices::vfio::region::host_page_size;

use super::System;
use super::finding::Finding;
use super::kind::Kind;
use crate::cli::{MemoryOptions, Size};
use crate::error::Error;
use crate::limits;
use crate::limits::hugepages::{self, Pool};

/// The page size for which device regions are made: the smallest there is.
const PAGE: u64 = 4096;

/// Checks the memory for a guest with this much RAM.
#[cold]
pub fn findings(system: &System, memory: MemoryOptions) -> Vec<Finding> {
    let MemoryOptions { size, pages, .. } = memory;
    let reserved = hugepages::pools();
    let huge_pages = match pages {
        RamPages::Reserved(page) => {
            of_pages(hugepages::check_reserved(size.bytes(), page), &reserved, memory)
        }
        RamPages::Transparent => of_pages(hugepages::check_transparent(false), &reserved, memory),
        RamPages::Any => huge_pages(&thp(system), &reserved),
    };
    // Those that are reserved are in use already.
    let available_for = if pages.are_reserved() { Size(0) } else { size };
    vec![
        memlock(Memlock::current(), size),
        available(limits::meminfo("MemAvailable"), available_for),
        huge_pages,
        page_size(host_page_size()),
    ]
}

fn memlock(memlock: Memlock, memory: Size) -> Finding {
    const SUBJECT: &str = "locked memory";
    match memlock.check(memory.bytes()) {
        Err(error) => {
            Finding::error(SUBJECT, &Kind::OF_HOST, Error::from(MapError::Memlock(error)))
        }
        Ok(()) if memlock.exempt => Finding::fine(SUBJECT, "no limit for this user"),
        Ok(()) => Finding::fine(
            SUBJECT,
            memlock.limit.map_or_else(
                || "no limit".to_owned(),
                |limit| format!("{:#}, enough for --memory {memory}", Size(limit)),
            ),
        ),
    }
}

fn available(free: Option<u64>, memory: Size) -> Finding {
    const SUBJECT: &str = "free memory";
    let Some(free) = free else { return Finding::fine(SUBJECT, "unknown") };
    let mebibytes = free >> 20;
    if free >= memory.bytes() {
        return Finding::fine(SUBJECT, format!("{mebibytes} MiB, enough for --memory {memory}"));
    }
    let text = format!("{mebibytes} MiB: the {memory} of a guest's RAM can't be pinned");
    let help = "a smaller --memory, or free some: `free -m`";
    Finding::blocks(SUBJECT, &Kind::OF_HOST, text, help)
}

/// `transparent_hugepage/enabled` (Documentation/admin-guide/mm/transhuge.rst).
fn thp(system: &System) -> String {
    let path = system.host.sysfs().join("kernel/mm/transparent_hugepage/enabled");
    fs::read_to_string(path).unwrap_or_default()
}

const HUGE_PAGES: &str = "huge pages";

/// Those that a guest is meant to have.
fn of_pages(checked: Result<(), Error>, reserved: &[Pool], memory: MemoryOptions) -> Finding {
    match checked {
        Ok(()) => {
            let reserved = reservation(reserved);
            Finding::fine(HUGE_PAGES, format!("{reserved}; enough for --memory {memory}"))
        }
        Err(error) => Finding::error(HUGE_PAGES, &Kind::ALL, error),
    }
}

/// What is reserved.
fn reservation(pools: &[Pool]) -> String {
    let some: Vec<String> = pools
        .iter()
        .filter(|pool| pool.total > 0)
        .map(|pool| format!("{} of {} ({} free)", pool.total, Size(pool.page), pool.free))
        .collect();
    if some.is_empty() { "0 reserved".to_owned() } else { format!("reserved: {}", some.join(", ")) }
}

fn huge_pages(thp: &str, reserved: &[Pool]) -> Finding {
    const SUBJECT: &str = HUGE_PAGES;
    let reserved = reservation(reserved);
    if thp.contains("[always]") || thp.contains("[madvise]") {
        return Finding::fine(SUBJECT, format!("transparent ones; {reserved}"));
    }
    if thp.is_empty() {
        let text =
            format!("the kernel has no transparent ones, which makes guests slower; {reserved}");
        return Finding::degraded(SUBJECT, text, "build it with CONFIG_TRANSPARENT_HUGEPAGE");
    }
    Finding::degraded(
        SUBJECT,
        format!("transparent ones are off, which makes guests slower; {reserved}"),
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )
}

fn page_size(size: u64) -> Finding {
    const SUBJECT: &str = "page size";
    let text = format!("{:#}", Size(size));
    if size <= PAGE {
        return Finding::fine(SUBJECT, text);
    }
    Finding::degraded(
        SUBJECT,
        format!("{text}: registers of devices that don't fill a page are trapped, not mapped"),
        "a host kernel with CONFIG_ARM64_4K_PAGES maps them",
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn memory_must_be_free_for_the_guest() {
        let level = |mebibytes: u64| available(Some(512 << 20), Size::from(mebibytes << 20)).level;
        assert_eq!((level(512), level(513)), (Level::Fine, Level::Blocks));
        assert_eq!(available(None, Size::from(1 << 40)).level, Level::Fine);
    }

    #[test]
    fn a_limit_below_the_guest_s_ram_blocks() {
        let check = |limit, exempt| memlock(Memlock { limit, exempt }, Size::from(64 << 20));
        assert_eq!(check(Some(8 << 20), false).level, Level::Blocks);
        assert!(check(Some(8 << 20), false).help.is_some_and(|help| help.contains("ulimit -l")));
        for (limit, exempt) in [(Some(8 << 20), true), (Some(64 << 20), false), (None, false)] {
            assert_eq!(check(limit, exempt).level, Level::Fine, "{limit:?} {exempt}");
        }
    }

    #[test]
    fn large_pages_of_the_host_and_missing_huge_ones_degrade() {
        let cases = [
            ("always [madvise] never", Level::Fine),
            ("[always] madvise never", Level::Fine),
            ("always madvise [never]", Level::Degraded),
            ("", Level::Degraded),
        ];
        for (thp, level) in cases {
            let finding = huge_pages(thp, &[]);
            assert_eq!(finding.level, level, "{thp}");
            assert!(finding.text.contains("0 reserved"), "{finding:?}");
        }
        assert_eq!(page_size(4096).level, Level::Fine);
        let large = page_size(65536);
        assert_eq!(large.level, Level::Degraded);
        assert!(large.text.starts_with("64 KiB"), "{}", large.text);
    }
}
