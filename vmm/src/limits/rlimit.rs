//! The resource limits of this process (`getrlimit(2)`).

use std::fs;

use devices::vfio::host::proc_field;

/// A resource that is limited. musl and glibc have other types for its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Addresses in use, in bytes.
    AddressSpace,
    /// Private memory that can be written, in bytes.
    Data,
    /// The size of a file that is written, in bytes.
    FileSize,
    /// Threads of the user's.
    Threads,
    /// Open files.
    Files,
}

impl Resource {
    /// Its name, as the manual has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AddressSpace => "RLIMIT_AS",
            Self::Data => "RLIMIT_DATA",
            Self::FileSize => "RLIMIT_FSIZE",
            Self::Threads => "RLIMIT_NPROC",
            Self::Files => "RLIMIT_NOFILE",
        }
    }

    /// The option of the shell's `ulimit` that sets it.
    pub fn ulimit(self) -> &'static str {
        match self {
            Self::AddressSpace => "ulimit -v",
            Self::Data => "ulimit -d",
            Self::FileSize => "ulimit -f",
            Self::Threads => "ulimit -u",
            Self::Files => "ulimit -n",
        }
    }

    /// This process's limit; nothing where there is none.
    pub fn limit(self) -> Option<u64> {
        self.limits().map(|limits| limits.rlim_cur).filter(|limit| *limit != libc::RLIM_INFINITY)
    }

    /// What this process may raise it to; nothing where there is no limit.
    pub fn hard_limit(self) -> Option<u64> {
        self.limits().map(|limits| limits.rlim_max).filter(|limit| *limit != libc::RLIM_INFINITY)
    }

    fn limits(self) -> Option<libc::rlimit> {
        let resource = match self {
            Self::AddressSpace => libc::RLIMIT_AS,
            Self::Data => libc::RLIMIT_DATA,
            Self::FileSize => libc::RLIMIT_FSIZE,
            Self::Threads => libc::RLIMIT_NPROC,
            Self::Files => libc::RLIMIT_NOFILE,
        };
        let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes one `rlimit`.
        let returned = unsafe { libc::getrlimit(resource, &raw mut limits) };
        (returned == 0).then_some(limits)
    }
}

/// How many bytes of address space this process uses, and how many of memory.
#[cold]
pub fn own_memory(page_size: u64) -> [u64; 2] {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    // In pages: address space, resident, …
    let mut pages = text.split_whitespace().map(|pages| pages.parse::<u64>().unwrap_or(0));
    [pages.next(), pages.next()].map(|pages| pages.unwrap_or(0).saturating_mul(page_size))
}

/// The threads of this process's user, if they are limited: root's and those of a process with
/// CAP_SYS_RESOURCE or CAP_SYS_ADMIN aren't (`copy_process` in the kernel).
#[cold]
pub fn threads_of_user() -> Option<u64> {
    const RESOURCE_OR_ADMIN: u64 = 1 << 24 | 1 << 21;
    let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = proc_field(&own, "CapEff").and_then(|set| u64::from_str_radix(set, 16).ok());
    let user = proc_field(&own, "Uid")?;
    if user == "0" || capabilities.is_some_and(|set| set & RESOURCE_OR_ADMIN != 0) {
        return None;
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let statuses = processes.filter_map(|entry| {
        let name = entry.file_name();
        let is_process = name.to_str()?.bytes().all(|byte| byte.is_ascii_digit());
        is_process.then(|| fs::read_to_string(entry.path().join("status")).ok())?
    });
    let of_user = statuses.filter(|status| proc_field(status, "Uid") == Some(user));
    let threads = of_user.filter_map(|status| proc_field(&status, "Threads")?.parse::<u64>().ok());
    Some(threads.fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_process() {
        assert!(Resource::Files.limit().is_some_and(|limit| limit > 0));
        assert!(Resource::Files.hard_limit() >= Resource::Files.limit());
        let [address_space, memory] = own_memory(4096);
        assert!(address_space > memory && memory > 4096);
    }
}
