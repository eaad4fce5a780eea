//! Compares the system calls that strait's threads made in system tests with those that their filters
//! allow (`vmm/seccomp/*.filter`).
//!
//! `STRAIT_CALLS=FILE STRAIT_CALLS_OF=all cargo model test …` appends them to a file: the agent traces strait, and
//! its threads' filters are replaced by one that has calls counted. What is allowed and never made needs a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use crate::setup::workspace;

/// Of linux/kvm.h.
const KVM_RUN: u64 = 0xae80;

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

/// What the reason of a line has that allows what no test makes.
const UNTESTED: &str = "no test";

/// What a line of a filter allows: a call, if its arguments are as it says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    call: String,
    /// Arguments, which bits of them, and what these are.
    conditions: Vec<(usize, u64, u64)>,
    /// The line, as it is written, without its reason.
    text: String,
    /// The reason says that no test makes the call.
    is_untested: bool,
}

/// A call that was made: its name or number, and those of its arguments by which filters decide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Made {
    call: String,
    arguments: BTreeMap<usize, u64>,
}

impl Rule {
    fn allows(&self, made: &Made) -> bool {
        let is = |(argument, mask, value): &(usize, u64, u64)| {
            made.arguments.get(argument).is_some_and(|made| made & mask == *value)
        };
        self.call == made.call && self.conditions.iter().all(is)
    }
}

/// Says for each filter what it allows that was never made, and what was made that it doesn't allow; and what all
/// threads may ask for that none, or only those of one filter, have.
///
/// # Errors
///
/// A file can't be read.
pub fn report(file: &Path) -> io::Result<String> {
    let directory = workspace::root().join("vmm/seccomp");
    let names = constants(&fs::read_to_string(directory.join("constants"))?);
    let (made, others) = made(&fs::read_to_string(file)?);
    let mut filters = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        filters.extend(name.strip_suffix(".filter").map(str::to_owned));
    }
    filters.sort();
    let common = allowed(&fs::read_to_string(directory.join("common.filter"))?, &names);
    let mut users: BTreeMap<&Rule, Vec<&str>> =
        common.iter().map(|rule| (rule, Vec::new())).collect();
    let (nothing, mut text) = (BTreeSet::new(), String::new());
    for filter in filters.iter().filter(|filter| *filter != "common") {
        let own = allowed(&fs::read_to_string(directory.join(format!("{filter}.filter")))?, &names);
        let made = made.get(filter.as_str()).unwrap_or(&nothing);
        let is_made = |rule: &Rule| made.iter().any(|made| rule.allows(made));
        let is_own = |made: &Made| own.iter().any(|rule| rule.allows(made));
        // What its own lines allow is no use of those for all.
        for (rule, users) in &mut users {
            if made.iter().any(|made| rule.allows(made) && !is_own(made)) {
                users.push(filter);
            }
        }
        let text_of = |rule: &Rule| rule.text.clone();
        let never = own.iter().filter(|rule| !is_made(rule) && !rule.is_untested).map(text_of);
        text += &line(&format!("{filter}: never made"), never);
        let wrong = own.iter().filter(|rule| is_made(rule) && rule.is_untested).map(text_of);
        text += &line(&format!("{filter}: made, though said to be by no test"), wrong);
        let is_allowed = |made: &&Made| own.iter().chain(&common).any(|rule| rule.allows(made));
        let extra = made.iter().filter(|made| !is_allowed(made)).map(Made::to_string);
        text += &line(&format!("{filter}: not allowed"), extra);
    }
    let by = |count: usize| users.iter().filter(move |(_, users)| users.len() == count);
    let never = by(0).filter(|(rule, _)| !rule.is_untested);
    text += &line("common: never made by any", never.map(|(rule, _)| rule.text.clone()));
    let one = by(1).map(|(rule, users)| format!("{} by {}", rule.text, users.join(" ")));
    text += &line("common: made by one", one);
    text += &line("threads of no filter", others.into_iter());
    Ok(text)
}

fn line(what: &str, calls: impl Iterator<Item = String>) -> String {
    let calls: Vec<String> = calls.collect();
    if calls.is_empty() { String::new() } else { format!("{what}: {}\n", calls.join(", ")) }
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.call)?;
        self.arguments.iter().try_for_each(|(index, value)| write!(f, " {index}={value:#x}"))
    }
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

/// What a filter's own lines allow.
fn allowed(text: &str, names: &BTreeMap<String, u64>) -> BTreeSet<Rule> {
    let value = |text: &str| {
        text.split('|')
            .try_fold(0, |sum, part| Some(sum | number(part).or_else(|| names.get(part).copied())?))
    };
    let condition = |word: &str| {
        let (left, right) = word.split_once('=')?;
        let (index, mask) = left.split_once('&').unwrap_or((left, "0xffffffff"));
        Some((index.parse().ok()?, value(mask)?, value(right)?))
    };
    let rule = |line: &str| {
        let (words, reason) = line.split_once('#').unwrap_or((line, ""));
        let words: Vec<&str> = words.split_whitespace().collect();
        let (call, conditions) = words.split_first()?;
        (*call != "include" && !call.starts_with('[')).then(|| Rule {
            call: (*call).to_owned(),
            conditions: conditions.iter().filter_map(|word| condition(word)).collect(),
            text: words.join(" "),
            is_untested: reason.contains(UNTESTED),
        })
    };
    text.lines().filter_map(rule).collect()
}

/// The calls that were made, by the filter of the thread that made them, and threads of which none is known.
fn made(text: &str) -> (BTreeMap<&'static str, BTreeSet<Made>>, BTreeSet<String>) {
    let mut made: BTreeMap<_, BTreeSet<Made>> = BTreeMap::new();
    let mut others = BTreeSet::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [thread, nr, arguments, _] = words[..] else { continue };
        let Ok(nr) = nr.parse::<u64>() else { continue };
        let Some(filter) = filter_of(thread) else {
            others.insert(thread.to_owned());
            continue;
        };
        let name = NUMBERS.iter().find(|(_, number)| *number == nr).map(|(name, _)| *name);
        let argument = |word: &str| {
            let (index, value) = word.split_once('=')?;
            Some((index.parse().ok()?, number(value)?))
        };
        let call = name.map_or_else(|| nr.to_string(), str::to_owned);
        let arguments = arguments.split(',').filter_map(argument).collect();
        made.entry(filter).or_default().insert(Made { call, arguments });
    }
    // The tracer doesn't count what each vCPU's thread is for: it would make guests too slow.
    if let Some(made) = made.get_mut("vcpu") {
        made.insert(Made { call: "ioctl".to_owned(), arguments: [(1, KVM_RUN)].into() });
    }
    (made, others)
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
        let known = |rule: &Rule| NUMBERS.iter().any(|(known, _)| *known == rule.call);
        let unknown: Vec<_> = calls.iter().filter(|rule| !known(rule)).collect();
        assert!(!calls.is_empty() && unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn what_was_made_is_compared_with_what_is_allowed() {
        let names = constants("# Names\nRUN 0xae80\nFIXED 0x10\n");
        let allowed = allowed(
            "# A filter.\n[uncached]\nioctl 1=RUN # runs\ninclude common\nread # reads: no test\n\
             mmap 2&4=0 3&FIXED=FIXED # maps\n",
            &names,
        );
        let text = "vcpu0 29 1=0xae01 5\nvcpu1 222 2=0x3,3=0x11 1\nvcpu1 222 2=0x3,3=0x1 1\n\
                    vcpu1 222 2=0x5,3=0x11 1\nstrait 56 - 1\nkilled vcpu0 29 1=0xae01\nodd 1 - 1\n";
        let (made, others) = made(text);
        assert_eq!(others.into_iter().collect::<Vec<_>>(), ["odd"]);
        let made = &made["vcpu"];
        let never = allowed.iter().filter(|rule| !made.iter().any(|made| rule.allows(made)));
        let never: Vec<_> = never.map(|rule| (rule.text.as_str(), rule.is_untested)).collect();
        assert_eq!(never, [("read", true)]);
        let extra = made.iter().filter(|made| !allowed.iter().any(|rule| rule.allows(made)));
        let extra: Vec<_> = extra.map(Made::to_string).collect();
        assert_eq!(extra, ["ioctl 1=0xae01", "mmap 2=0x3 3=0x1", "mmap 2=0x5 3=0x11"]);
    }
}
