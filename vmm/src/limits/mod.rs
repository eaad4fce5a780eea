//! What the host lets this process have: limits of control groups, of the process, of the host.
//!
//! While planning, a guest for which one is too low is refused with both numbers, rather than
//! killed later. What a run without assigned devices asks for here costs it system calls only.

mod cgroup;
pub mod hugepages;
mod rlimit;

use std::fs;
use std::time::{Duration, Instant};

use devices::vfio::host::proc_field;
use devices::vfio::region::host_page_size;

use self::cgroup::{Groups, Limit};
pub use self::rlimit::Resource;
use crate::cli::Size;
use crate::error::Error;

/// What it takes to map RAM, beside RAM: entries of 8 bytes for pages of 4 KiB, once for the guest
/// and once for its devices.
const RAM_PER_TABLE_BYTE: u64 = 4096 / (2 * 8);

/// What strait itself takes at most, in bytes.
const OWN_MEMORY: u64 = 4 << 20;

/// Checks that `ram` bytes of address space can be had; `shared`, of a file.
///
/// # Errors
///
/// A limit of this process is too low.
pub fn check_reservation(ram: u64, shared: bool) -> Result<(), Error> {
    let kind = if shared { Resource::FileSize } else { Resource::Data };
    for resource in [Resource::AddressSpace, kind] {
        let Some(limit) = resource.limit() else { continue };
        check_resource(resource, limit, own_use(resource), ram)?;
    }
    Ok(())
}

/// What this process has of a resource already.
fn own_use(resource: Resource) -> u64 {
    match resource {
        Resource::AddressSpace => {
            let [address_space, _] = rlimit::own_memory(host_page_size());
            address_space
        }
        _ => 0,
    }
}

fn check_resource(resource: Resource, limit: u64, used: u64, ram: u64) -> Result<(), Error> {
    let needed = ram.saturating_add(used);
    if needed <= limit {
        return Ok(());
    }
    let (name, ulimit) = (resource.name(), resource.ulimit());
    Err(Error::new(format!(
        "{} of guest RAM can't be had: this process may have {} ({name}), and uses {}",
        Size::from(ram),
        mebibytes(limit),
        mebibytes(used)
    ))
    .help(format!("{ulimit} unlimited (as far as the hard limit goes), or a smaller --memory")))
}

/// Checks that `ram` bytes, all of which are pinned for DMA, fit what the host and this process's
/// control groups have left: else the host would kill processes to find it, this one first.
///
/// # Errors
///
/// They don't.
#[cold]
pub fn check_pinning(ram: u64) -> Result<(), Error> {
    check_available(ram, meminfo("MemAvailable"))?;
    let GroupMemory { error, slow, .. } = group_memory(ram);
    if let Some(slow) = slow {
        log::warn!("{}", slow.log_text());
    }
    error.map_or(Ok(()), Err)
}

/// What control groups have for pinned RAM.
pub struct GroupMemory {
    /// How many bytes the tightest leaves; nothing where none is limited.
    pub left: Option<u64>,
    /// It is too little.
    pub error: Option<Error>,
    /// It is more than a group may have before the host slows it down.
    pub slow: Option<Error>,
}

/// What the control groups of this process have for `ram` bytes of pinned RAM.
#[cold]
pub fn group_memory(ram: u64) -> GroupMemory {
    let groups = Groups::own();
    let limit = groups.memory();
    GroupMemory {
        left: limit.as_ref().map(Limit::left),
        error: check_group_memory(ram, limit).err(),
        slow: too_slow(ram, groups.unthrottled_memory()),
    }
}

fn check_available(ram: u64, available: Option<u64>) -> Result<(), Error> {
    let Some(available) = available.filter(|available| *available < ram) else { return Ok(()) };
    Err(Error::new(format!(
        "{} of guest RAM can't be pinned for DMA: this host has {} available",
        Size::from(ram),
        mebibytes(available)
    ))
    .help("a smaller --memory, or free some: `free -m`"))
}

/// A field of /proc/meminfo in bytes.
pub fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    proc_field(&text, name)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// How long after a guest's start [`UnpinnedMemory`] looks: after a start that is measured, and before a
/// guest has touched much.
const UNPINNED_DELAY: Duration = Duration::from_millis(100);

/// Tells once, soon after a guest's start, if the control groups of this process have less memory than
/// the guest's RAM, which isn't pinned: the host gives it page by page, and kills this process at the
/// first that is too many.
pub struct UnpinnedMemory {
    ram: u64,
    at: Instant,
}

impl UnpinnedMemory {
    /// For a guest with `ram` bytes that starts now.
    pub fn new(ram: u64) -> Self {
        Self { ram, at: Instant::now() + UNPINNED_DELAY }
    }

    /// How long to wait before the next [`look`](Self::look), in ms.
    pub fn wait_ms(&self) -> i32 {
        let left = self.at.saturating_duration_since(Instant::now()).as_millis();
        // One more, for what is cut off.
        i32::try_from(left.saturating_add(1)).unwrap_or(i32::MAX)
    }

    /// Looks, and tells; `None` when that is done.
    pub fn look(self) -> Option<Self> {
        if Instant::now() < self.at {
            return Some(self);
        }
        warn_unpinned(self.ram);
        None
    }
}

/// Tells if the control groups of this process have too little memory for `ram` bytes that aren't
/// pinned.
#[cold]
pub fn warn_unpinned(ram: u64) {
    if !cgroup::are_in_place() {
        return;
    }
    let groups = Groups::own();
    let Some(mut limit) = groups.memory() else { return };
    // What the guest has touched of it already isn't counted twice.
    let [_, own] = rlimit::own_memory(host_page_size());
    limit.used = limit.used.saturating_sub(own);
    let swap = meminfo("SwapFree").unwrap_or(0);
    let swap = groups.swap().map_or(swap, |limit| limit.left().min(swap));
    if let Err(error) = check_unpinned(ram, &limit, swap) {
        log::warn!("{}", error.log_text());
    }
}

fn check_unpinned(ram: u64, limit: &Limit, swap: u64) -> Result<(), Error> {
    let needed = total_memory(ram);
    if needed <= limit.left().saturating_add(swap) {
        return Ok(());
    }
    Err(Error::new(format!(
        "{} of guest RAM take {}, and {} leaves {} of {}, with {} of swap: the host kills this process \
         when the guest uses more",
        Size::from(ram),
        mebibytes(needed),
        limit.file.display(),
        mebibytes(limit.left()),
        mebibytes(limit.limit),
        mebibytes(swap)
    ))
    .help(raise_memory(limit, needed, "MemoryMax")))
}

/// All that a guest with this much pinned RAM takes, in bytes.
fn total_memory(ram: u64) -> u64 {
    ram.saturating_add(ram / RAM_PER_TABLE_BYTE).saturating_add(OWN_MEMORY)
}

fn check_group_memory(ram: u64, limit: Option<Limit>) -> Result<(), Error> {
    let needed = total_memory(ram);
    let Some(limit) = limit.filter(|limit| limit.left() < needed) else { return Ok(()) };
    Err(Error::new(format!(
        "{} of guest RAM can't be pinned for DMA: it takes {}, and {} leaves {} of {}",
        Size::from(ram),
        mebibytes(needed),
        limit.file.display(),
        mebibytes(limit.left()),
        mebibytes(limit.limit)
    ))
    .help(raise_memory(&limit, needed, "MemoryMax")))
}

/// What of `memory.high` makes a guest slow.
fn too_slow(ram: u64, limit: Option<Limit>) -> Option<Error> {
    let needed = total_memory(ram);
    let limit = limit.filter(|limit| limit.left() < needed)?;
    let error = Error::new(format!(
        "{} of guest RAM is pinned for DMA, and {} leaves {}: the host slows this process down",
        Size::from(ram),
        limit.file.display(),
        mebibytes(limit.left())
    ));
    Some(error.help(raise_memory(&limit, needed, "MemoryHigh")))
}

/// How a control group's limit is raised so that `needed` more bytes fit.
fn raise_memory(limit: &Limit, needed: u64, unit: &str) -> String {
    let wanted = limit.used.saturating_add(needed).div_ceil(1 << 20);
    format!(
        "echo {wanted}M | sudo tee {}; of a systemd unit, {unit}={wanted}M; of a container, docker \
         --memory {wanted}m; or a smaller --memory",
        limit.file.display()
    )
}

/// Checks that so many vCPUs can have a thread each beside those there are.
///
/// # Errors
///
/// They can't.
#[cold]
pub fn check_threads(vcpus: u64) -> Result<(), Error> {
    check(vcpus, &format!("{vcpus} vCPUs can't have a thread each"))
}

/// Checks that so many vCPUs can have a process, beside this one, and a thread each.
///
/// # Errors
///
/// They can't.
#[cold]
pub fn check_process(vcpus: u64) -> Result<(), Error> {
    let wanted = vcpus.saturating_add(1);
    check(wanted, &format!("{vcpus} vCPUs can't have a process of their own and a thread each"))
}

/// Checks that so many tasks can be had, and says what can't be if not.
fn check(wanted: u64, what: &str) -> Result<(), Error> {
    check_tasks(wanted, what, Groups::own().tasks())?;
    let Some(limit) = Resource::Threads.limit() else { return Ok(()) };
    check_user(wanted, what, limit, rlimit::threads_of_user())
}

fn check_tasks(wanted: u64, what: &str, limit: Option<Limit>) -> Result<(), Error> {
    let Some(limit) = limit.filter(|limit| limit.left() < wanted) else { return Ok(()) };
    let (file, needed) = (limit.file.display(), limit.used.saturating_add(wanted));
    Err(Error::new(format!(
        "{what}: {file} leaves {} of {} tasks",
        limit.left(),
        limit.limit
    ))
    .help(format!(
        "echo {needed} | sudo tee {file}; of a systemd unit, TasksMax={needed}; of a container, \
         docker --pids-limit {needed}; or fewer --cpus"
    )))
}

fn check_user(wanted: u64, what: &str, limit: u64, threads: Option<u64>) -> Result<(), Error> {
    let Some(threads) = threads.filter(|n| n.saturating_add(wanted) > limit) else { return Ok(()) };
    let needed = threads.saturating_add(wanted);
    Err(Error::new(format!(
        "{what}: this user may have {limit} ({}), and has {threads}",
        Resource::Threads.name()
    ))
    .help(format!(
        "{} {needed} (as far as the hard limit goes), sudo prlimit --pid $$ --nproc={needed}, or \
         fewer --cpus",
        Resource::Threads.ulimit()
    )))
}

/// How many CPUs this process may run on: those of its cpuset and its affinity.
#[cold]
pub fn cpus() -> Option<u64> {
    let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: the kernel writes at most `size` bytes of the set.
    if unsafe { libc::sched_getaffinity(0, size, set.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: zeroed, then written by the kernel; any bytes are a set.
    let set = unsafe { set.assume_init() };
    // SAFETY: only counts the bits.
    u64::try_from(unsafe { libc::CPU_COUNT(&set) }).ok()
}

/// How many CPUs the host has (`/sys/devices/system/cpu/online`, Documentation/ABI/testing).
#[cold]
pub fn online_cpus() -> Option<u64> {
    count(fs::read_to_string("/sys/devices/system/cpu/online").ok()?.trim())
}

/// How many numbers a list such as `0-3,8` has.
fn count(list: &str) -> Option<u64> {
    list.split(',').try_fold(0u64, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// A size in mebibytes, rounded down, as people read it.
pub fn mebibytes(bytes: u64) -> Size {
    Size::from(bytes & !((1 << 20) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn group(file: &str, limit: u64, used: u64) -> Option<Limit> {
        Some(Limit { file: file.into(), limit, used })
    }

    #[test]
    fn ram_must_fit_what_the_host_has_left() {
        check_available(1 << 30, Some(1 << 30)).unwrap();
        check_available(1 << 30, None).unwrap();
        let report = check_available(1 << 30, Some((512 << 20) + 1)).unwrap_err().report();
        assert!(report.contains("1G of guest RAM") && report.contains("has 512M"), "{report}");
    }

    #[test]
    fn ram_must_fit_what_control_groups_leave() {
        // 1 MiB of tables and 4 of strait's own.
        check_group_memory(256 * MIB, group("/c/memory.max", 300 * MIB, 39 * MIB)).unwrap();
        check_group_memory(256 * MIB, None).unwrap();
        let tight = || group("/c/memory.max", 300 * MIB, 40 * MIB);
        let report = check_group_memory(256 * MIB, tight()).unwrap_err().report();
        for part in [
            "256M of guest RAM can't be pinned for DMA: it takes 261M, and /c/memory.max leaves \
             260M of 300M",
            "help: echo 301M | sudo tee /c/memory.max",
            "MemoryMax=301M",
        ] {
            assert!(report.contains(part), "{part}: {report}");
        }
        let slow = too_slow(256 * MIB, tight()).unwrap();
        assert!(slow.report().contains("slows"), "{}", slow.report());
        assert!(too_slow(256 * MIB, None).is_none());
    }

    #[test]
    fn ram_that_is_not_pinned_may_be_in_swap() {
        let limit = group("/c/memory.max", 300 * MIB, 200 * MIB).unwrap();
        check_unpinned(256 * MIB, &limit, 161 * MIB).unwrap();
        let report = check_unpinned(256 * MIB, &limit, 160 * MIB).unwrap_err().report();
        for part in [
            "256M of guest RAM take 261M, and /c/memory.max leaves 100M of 300M, with 160M of swap",
            "kills this process",
            "help: echo 461M | sudo tee /c/memory.max",
        ] {
            assert!(report.contains(part), "{part}: {report}");
        }
    }

    #[test]
    fn a_guest_is_asked_after_once() {
        let check = UnpinnedMemory::new(0);
        assert!((50..=101).contains(&check.wait_ms()));
        assert!(check.look().is_some_and(|check| check.wait_ms() > 1));
        let due = UnpinnedMemory { ram: 0, at: Instant::now() };
        assert_eq!(due.wait_ms(), 1);
        assert!(due.look().is_none());
    }

    #[test]
    fn address_space_must_be_had() {
        check_resource(Resource::AddressSpace, 300 * MIB, 44 * MIB, 256 * MIB).unwrap();
        let error = check_resource(Resource::AddressSpace, 300 * MIB, 45 * MIB, 256 * MIB);
        let report = error.unwrap_err().report();
        assert!(report.contains("may have 300M (RLIMIT_AS), and uses 45M"), "{report}");
        assert!(report.contains("help: ulimit -v unlimited"), "{report}");
    }

    #[test]
    fn each_vcpu_needs_a_thread() {
        check_tasks(2, "2 vCPUs", group("/c/pids.max", 3, 1)).unwrap();
        let report = check_tasks(3, "3 vCPUs", group("/c/pids.max", 3, 1)).unwrap_err().report();
        assert!(report.contains("3 vCPUs") && report.contains("leaves 2 of 3 tasks"), "{report}");
        assert!(report.contains("echo 4 | sudo tee /c/pids.max"), "{report}");
        check_user(2, "2 vCPUs", 10, None).unwrap();
        check_user(2, "2 vCPUs", 10, Some(8)).unwrap();
        let report = check_user(2, "2 vCPUs", 10, Some(9)).unwrap_err().report();
        assert!(report.contains("may have 10 (RLIMIT_NPROC), and has 9"), "{report}");
        assert!(report.contains("ulimit -u 11"), "{report}");
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, number) in [("0", Some(1)), ("0-3,8", Some(5)), ("", None), ("3-1", None)] {
            assert_eq!(count(list), number, "{list}");
        }
        assert!(cpus().is_some_and(|cpus| cpus > 0));
    }
}
