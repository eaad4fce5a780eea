//! The limit of locked memory (`RLIMIT_MEMLOCK`): mapping the guest's RAM for DMA pins all of it.

use boot::help::Help;
use std::fs;

use super::host::proc_field;
use super::remedy;

/// `CAP_IPC_LOCK` (`linux/capability.h`), which lifts the limit.
const CAP_IPC_LOCK: u32 = 14;

/// How much memory a process may pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memlock {
    /// The limit in bytes; `None` for no limit.
    pub limit: Option<u64>,
    /// The process has `CAP_IPC_LOCK`, so that the limit doesn't apply.
    pub exempt: bool,
}

impl Memlock {
    /// This process's.
    pub fn current() -> Self {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes one `rlimit`.
        let returned = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
        let limited = returned == 0 && limit.rlim_cur != libc::RLIM_INFINITY;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self { limit: limited.then_some(limit.rlim_cur), exempt: has_ipc_lock(&status) }
    }

    /// Checks that `ram` bytes may be pinned.
    ///
    /// # Errors
    ///
    /// The limit is lower.
    pub fn check(self, ram: u64) -> Result<(), MemlockTooLow> {
        self.check_with(ram, 0)
    }

    /// Checks that `ram` bytes may be pinned in addition to `others`, which this user's other processes
    /// have pinned: iommufd counts by user (`incr_user_locked_vm` in the kernel).
    ///
    /// # Errors
    ///
    /// The limit is lower.
    pub fn check_with(self, ram: u64, others: u64) -> Result<(), MemlockTooLow> {
        match self.limit {
            Some(limit) if !self.exempt && limit < ram => {
                Err(MemlockTooLow { ram, limit, others: 0 })
            }
            Some(limit) if !self.exempt && limit < ram.saturating_add(others) => {
                Err(MemlockTooLow { ram, limit, others })
            }
            _ => Ok(()),
        }
    }
}

/// How many bytes the other processes of this user have pinned, as far as `/proc` shows them (VmPin
/// of `/proc/PID/status`, Documentation/filesystems/proc.rst).
#[cold]
pub fn pinned_by_others() -> u64 {
    let (uid, own) = (uid(), std::process::id().to_string());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter(|entry| entry.file_name() != *own);
    let statuses = others.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    statuses.filter_map(|status| pinned_by(uid, &status)).fold(0, u64::saturating_add)
}

/// This user's real ID.
fn uid() -> libc::uid_t {
    // SAFETY: takes nothing and never fails.
    unsafe { libc::getuid() }
}

/// What a process has pinned, in bytes, if its real user ID, by which the kernel counts, is `uid`.
fn pinned_by(uid: libc::uid_t, status: &str) -> Option<u64> {
    let number = |name| proc_field(status, name)?.parse::<u64>().ok();
    (number("Uid") == Some(uid.into())).then(|| number("VmPin"))??.checked_mul(1024)
}

/// Whether `CAP_IPC_LOCK` is among the effective capabilities.
fn has_ipc_lock(status: &str) -> bool {
    let set = proc_field(status, "CapEff").and_then(|set| u64::from_str_radix(set, 16).ok());
    set.is_some_and(|set| set & (1 << CAP_IPC_LOCK) != 0)
}

/// The limit is lower than what must be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest's RAM ({} KiB) can't be pinned for DMA: {}", ram >> 10, self.reason())]
pub struct MemlockTooLow {
    /// The size of the guest's RAM in bytes.
    pub ram: u64,
    /// The limit in bytes.
    pub limit: u64,
    /// What this user's other processes have pinned, in bytes, if the limit were high enough without.
    pub others: u64,
}

impl MemlockTooLow {
    /// Whose limit it is.
    fn reason(&self) -> String {
        let (limit, others) = (self.limit >> 10, self.others >> 10);
        match others {
            0 => format!("this process may pin {limit} KiB (RLIMIT_MEMLOCK)"),
            _ => format!(
                "user {} may pin {limit} KiB in all of their processes (RLIMIT_MEMLOCK), and others \
                 have pinned {others} KiB",
                uid()
            ),
        }
    }
}

impl Help for MemlockTooLow {
    fn help(&self) -> Option<String> {
        Some(remedy::lock_memory(self.ram.saturating_add(self.others)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_counts_without_the_capability() {
        let cases = [
            (Some(1 << 20), false, 1 << 20, true),
            (Some(1 << 20), false, (1 << 20) + 1, false),
            (Some(1 << 20), true, 1 << 30, true),
            (None, false, 1 << 40, true),
        ];
        for (limit, exempt, ram, fits) in cases {
            let memlock = Memlock { limit, exempt };
            assert_eq!(memlock.check(ram).is_ok(), fits, "{memlock:?} {ram:#x}");
        }
    }

    #[test]
    fn a_low_limit_is_reported_with_what_is_needed() {
        let error = Memlock { limit: Some(8 << 20), exempt: false }.check(256 << 20).unwrap_err();
        let text = "the guest's RAM (262144 KiB) can't be pinned for DMA: this process may pin \
                    8192 KiB (RLIMIT_MEMLOCK)";
        assert_eq!(error.to_string(), text);
        assert!(error.help().unwrap().starts_with("ulimit -l 262144 "), "{error:?}");
    }

    #[test]
    fn the_capability_is_bit_14_of_the_effective_set() {
        let cases = [
            ("Name:\tx\nCapEff:\t0000000000004000\n", true),
            ("CapEff:\t000001ffffffffff\n", true),
            ("CapPrm:\t0000000000004000\nCapEff:\t0000000000000000\n", false),
            ("CapEff:\tnonsense\n", false),
            ("", false),
        ];
        for (status, has) in cases {
            assert_eq!(has_ipc_lock(status), has, "{status:?}");
        }
    }

    #[test]
    fn memory_pinned_by_other_processes_counts_too() {
        let memlock = Memlock { limit: Some(384 << 20), exempt: false };
        memlock.check_with(256 << 20, 128 << 20).unwrap();
        Memlock { exempt: true, ..memlock }.check_with(1 << 30, 0).unwrap();
        let error = memlock.check_with(256 << 20, 256 << 20).unwrap_err();
        let text = format!(
            "the guest's RAM (262144 KiB) can't be pinned for DMA: user {} may pin 393216 KiB in \
             all of their processes (RLIMIT_MEMLOCK), and others have pinned 262144 KiB",
            uid()
        );
        assert_eq!(error.to_string(), text);
        assert!(error.help().unwrap().starts_with("ulimit -l 524288 "), "{error:?}");
    }

    #[test]
    fn pinned_memory_is_counted_by_user() {
        let status = "Name:\tstrait\nUid:\t1000\t0\t0\t0\nVmLck:\t  8 kB\nVmPin:\t  262144 kB\n";
        assert_eq!(pinned_by(1000, status), Some(256 << 20));
        assert_eq!(pinned_by(0, status), None);
        // A thread of the kernel has no memory.
        assert_eq!(pinned_by(0, "Name:\tkthreadd\nUid:\t0\t0\t0\t0\n"), None);
        assert_eq!(pinned_by(0, ""), None);
    }
}
