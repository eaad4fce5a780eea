//! Compares the system calls that strait's threads made in system tests with those that their filters
//! allow (`vmm/seccomp/*.filter`).
//!
//! `STRAIT_CALLS=FILE cargo model test …` appends them to a file: the agent traces strait, whose
//! filters then log what they don't allow. What is allowed and never made needs a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use crate::setup::workspace;

/// The numbers of system calls of 64-bit Arm (asm-generic/unistd.h) that filters name.
const NUMBERS: &[(&str, u64)] = &[
    ("accept4", 242),
    ("timerfd_create", 85),
    ("timerfd_settime", 86),
    ("tgkill", 131),
    ("getpid", 172),
    ("gettid", 178),
    ("rt_sigaction", 134),
    ("getpgid", 155),
    ("epoll_ctl", 21),
    ("dup", 23),
    ("eventfd2", 19),
    ("ftruncate", 46),
    ("socketpair", 199),
    ("epoll_pwait", 22),
    ("fcntl", 25),
    ("ioctl", 29),
    ("fallocate", 47),
    ("close", 57),
    ("read", 63),
    ("write", 64),
    ("readv", 65),
    ("writev", 66),
    ("pread64", 67),
    ("pwrite64", 68),
    ("ppoll", 73),
    ("fdatasync", 83),
    ("exit", 93),
    ("exit_group", 94),
    ("futex", 98),
    ("clock_gettime", 113),
    ("clock_nanosleep", 115),
    ("sched_yield", 124),
    ("restart_syscall", 128),
    ("rt_sigpending", 136),
    ("rt_sigprocmask", 135),
    ("rt_sigreturn", 139),
    ("sendto", 206),
    ("recvfrom", 207),
    ("setsockopt", 208),
    ("getsockopt", 209),
    ("shutdown", 210),
    ("sendmsg", 211),
    ("recvmsg", 212),
    ("brk", 214),
    ("munmap", 215),
    ("mremap", 216),
    ("mmap", 222),
    ("mprotect", 226),
    ("madvise", 233),
    ("getrandom", 278),
    ("preadv2", 286),
    ("pwritev2", 287),
    ("statx", 291),
    ("io_uring_enter", 426),
    ("lseek", 62),
];

/// A call: its name or number, and the request of an ioctl or the command of a fcntl.
type Call = (String, Option<u64>);

/// Says for each filter what it allows that was never made, and what was made that it doesn't allow.
///
/// # Errors
///
/// A file can't be read.
pub fn report(file: &Path) -> io::Result<String> {
    let directory = workspace::root().join("vmm/seccomp");
    let names = constants(&fs::read_to_string(directory.join("constants"))?);
    let made = made(&fs::read_to_string(file)?);
    let mut filters = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        filters.extend(name.strip_suffix(".filter").map(str::to_owned));
    }
    filters.sort();
    let common = fs::read_to_string(directory.join("common.filter"))?;
    let (common, mut unused) = (allowed(&common, &names), allowed(&common, &names));
    let mut text = String::new();
    for filter in filters.iter().filter(|filter| *filter != "common") {
        let own = allowed(&fs::read_to_string(directory.join(format!("{filter}.filter")))?, &names);
        let nothing = BTreeSet::new();
        let made = made.get(filter.as_str()).unwrap_or(&nothing);
        unused.retain(|call| !made.contains(call));
        let extra = |call: &&Call| !own.contains(*call) && !common.contains(*call);
        text += &line(&format!("{filter}: never made"), own.difference(made));
        text += &line(&format!("{filter}: not allowed"), made.iter().filter(extra));
    }
    text += &line("common: never made by any", unused.iter());
    Ok(text)
}

fn line<'a>(what: &str, calls: impl Iterator<Item = &'a Call>) -> String {
    let calls = calls.map(|(name, request)| match request {
        Some(request) => format!("{name} {request:#x}"),
        None => name.clone(),
    });
    let calls: Vec<String> = calls.collect();
    if calls.is_empty() { String::new() } else { format!("{what}: {}\n", calls.join(", ")) }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn constants(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), number(value.trim())?))
    };
    text.lines().filter_map(line).collect()
}

/// The calls that a filter's own lines allow.
fn allowed(text: &str, names: &BTreeMap<String, u64>) -> BTreeSet<Call> {
    let rules = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let call = |rule: &str| {
        let mut words = rule.split_whitespace();
        let name = words.next().filter(|name| *name != "include" && !name.starts_with('['))?;
        let request = words.find_map(|word| word.strip_prefix("1="));
        let request = request.and_then(|text| number(text).or_else(|| names.get(text).copied()));
        Some((name.to_owned(), request))
    };
    rules.filter_map(call).collect()
}

/// The calls that were made, by the filter of the thread that made them.
fn made(text: &str) -> BTreeMap<&'static str, BTreeSet<Call>> {
    let mut made: BTreeMap<_, BTreeSet<Call>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [thread, nr, argument, _] = words[..] else { continue };
        let (Some(filter), Ok(nr)) = (filter_of(thread), nr.parse::<u64>()) else { continue };
        let name = NUMBERS.iter().find(|(_, number)| *number == nr).map(|(name, _)| *name);
        let name = name.map_or_else(|| nr.to_string(), str::to_owned);
        let has_request = matches!(name.as_str(), "ioctl" | "fcntl");
        let request = number(argument).filter(|_| has_request);
        made.entry(filter).or_default().insert((name, request));
    }
    made
}

/// The filter of the threads that are called so.
fn filter_of(thread: &str) -> Option<&'static str> {
    Some(match thread {
        "strait" => "event-loop",
        "entropy" => "entropy",
        "flash" => "flash",
        "gdb" => "gdb",
        "balloon" => "balloon",
        "virtio-intx" => "intx",
        "net-rx" | "net-tx" => "net",
        "console-rx" | "console-tx" => "console",
        "vhost-user" | "vhost-user-time" => "vhost-user",
        _ if thread.starts_with("vfio-user") => "vfio-user",
        _ if thread.starts_with("vcpu") => "vcpu",
        _ if thread.starts_with("block") => "block",
        _ if thread.ends_with("-watch") => "vhost",
        _ if thread.ends_with("-file") => "console-file",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_that_a_filter_names_has_its_number() {
        let directory = workspace::root().join("vmm/seccomp");
        let mut calls = BTreeSet::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "filter") {
                calls.extend(allowed(&fs::read_to_string(path).unwrap(), &BTreeMap::new()));
            }
        }
        let known = |name: &str| NUMBERS.iter().any(|(known, _)| *known == name);
        let unknown: Vec<_> = calls.iter().filter(|(name, _)| !known(name)).collect();
        assert!(!calls.is_empty() && unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn what_was_made_is_compared_with_what_is_allowed() {
        let names = constants("# Names\nRUN 0xae80\n");
        let allowed = allowed(
            "# A filter.\n[uncached]\nioctl 1=RUN # runs\ninclude common\nread # reads\n",
            &names,
        );
        let made =
            made("vcpu0 29 0xae80 5\nvcpu1 29 0xae01 1\nstrait 56 - 1\nkilled vcpu0 29 0xae01\n");
        let made = &made["vcpu"];
        let never: Vec<_> = allowed.difference(made).collect();
        assert_eq!(never, [&("read".to_owned(), None)]);
        let extra: Vec<_> = made.difference(&allowed).collect();
        assert_eq!(extra, [&("ioctl".to_owned(), Some(0xae01))]);
    }
}
