//! What a run asks the host for, and doesn't get, at each step: an error of three parts, and a host that is
//! as before.

use tests::harness::{Board, Failure, Host, PLATFORM_DMA, TestResult, payload};
use tests::suite::SOAK;

const NVME: &str = "0000:00:05.0";
const GROUP: &str = "/sys/fs/cgroup/job";

/// What a run may change on the host.
const STATE: &str = "for device in platform/devices/DMA pci/devices/NVME; do \
    echo $(readlink /sys/bus/$device/driver) $(cat /sys/bus/$device/driver_override); done; \
    ls /tmp; find /run/strait -type f ! -name lock 2>/dev/null; cat /proc/mounts; pidof strait; \
    ls /sys/kernel/debug/kvm | grep -e -";

/// A host that has what `arguments` name.
fn boot() -> Result<Host, Failure> {
    let host = Board::new()
        .disk("disk", 1 << 20)
        .device("nvme,drive=disk,serial=disk,addr=5")
        .file("k/off", payload::power_off())
        .boot()?;
    host.sh(": >/tmp/serial; : >/tmp/stats; truncate -s 1M /tmp/disk && mkdir -p /tmp/full && mount -t tmpfs -o size=4k none /tmp/full && \
         mount -t cgroup2 none /sys/fs/cgroup && cd /sys/fs/cgroup && \
         echo '+memory +pids' >cgroup.subtree_control && mkdir job && agent vfio-user serve /tmp/v.sock \
         >/tmp/server 2>&1 & until [ -S /tmp/v.sock ]; do sleep 0.05; done")?;
    Ok(host)
}

/// A run with a device of each kind, and a parent.
fn run(memory: &str, more: &str) -> String {
    format!(
        "strait run --kernel /k/off --memory {memory} --cpus 2 --bind --vfio-platform {} --vfio-pci {NVME} \
         --vfio-user /tmp/v.sock --block /tmp/disk --virtio-console unix:/tmp/console \
         --console file:/tmp/serial {more}",
        PLATFORM_DMA[0]
    )
}

/// What became of a run.
struct Outcome {
    status: i32,
    said: String,
    /// What is wrong with that: it wasn't told, or the host is another.
    fault: Option<String>,
}

/// What a run may change, as it is now.
fn state(host: &Host) -> Result<String, Failure> {
    host.sh(&format!("{}; true", STATE.replace("DMA", PLATFORM_DMA[0]).replace("NVME", NVME)))
}

/// Runs it. If it fails, that has to be told, and the host has to be as `before`; or once devices are unbound and
/// another run has replaced the file of its socket, if the run had no way to do so.
fn attempt(host: &Host, run: &str, before: &str, may_mend: bool) -> Result<Outcome, Failure> {
    let answer = host.run(&format!("({run}) 2>&1 >/dev/null"))?;
    let (said, status) = (answer.output, answer.status);
    let mut after = state(host)?;
    if after != before {
        host.run(&format!("strait device unbind {} {NVME}", PLATFORM_DMA[0]))?;
        host.run("strait run --kernel /k/off --virtio-console unix:/tmp/console")?;
        let mended = state(host)?;
        if !may_mend {
            assert_eq!(mended, before, "can't be mended: {run}: {said}");
        } else {
            after = mended;
        }
    }
    let (error, help) = said.split_once("\n  help: ").unwrap_or((&said, ""));
    let is_told = error.contains("error: ") && !help.trim().is_empty();
    let fault = if after != before {
        Some(format!(
            "{run}: status {status}: {said}the host is another: {after}, but was {before}"
        ))
    } else if status != 0 && (status != 1 || !is_told) {
        Some(format!("{run}: status {status}: {said}"))
    } else {
        None
    };
    Ok(Outcome { status, said, fault })
}

/// Runs it in each of these ways, which a shell has before it. At the first at least it has to fail, and at
/// the last to end well.
fn check(host: &Host, ways: &[String], run: &str) -> TestResult {
    let before = state(host)?;
    let (mut failed, mut last, mut faults) = (0, 0, Vec::new());
    for way in ways {
        let outcome = attempt(host, &format!("{way}; exec {run}"), &before, false)?;
        faults.extend(outcome.fault);
        if outcome.status != 0 {
            println!("{way}: {}", outcome.said);
            failed += 1;
        }
        last = outcome.status;
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(failed > 0 && last == 0, "{failed} of {ways:?} failed, the last with {last}");
    Ok(())
}

#[test]
fn whatever_the_host_has_too_little_of_is_told() -> TestResult {
    let host = boot()?;
    let run = run("16M", "");
    let each = |numbers: &[u32], way: &dyn Fn(u32) -> String| -> Vec<String> {
        numbers.iter().map(|number| way(*number)).collect()
    };
    let files: Vec<u32> = (4..28).step_by(3).chain([40, 64, 128, 160, 1024]).collect();
    check(&host, &each(&files, &|n| format!("ulimit -n {n}")), &run)?;
    let memory: Vec<u32> = (8..68).step_by(5).chain([4096]).collect();
    check(&host, &each(&memory, &|mib| format!("ulimit -v {}", mib << 10)), &run)?;
    let tasks: Vec<u32> = (1..9).chain([1000]).collect();
    let enter = |n| format!("echo {n} >{GROUP}/pids.max; echo 0 >{GROUP}/cgroup.procs");
    check(&host, &each(&tasks, &enter), &run)?;
    // Guest RAM is pinned, and so more than a group may have that has less.
    let memory = [2, 10, 18, 4096];
    let enter = |n| {
        format!(
            "echo max >{GROUP}/pids.max; echo {n}M >{GROUP}/memory.max; echo 0 >{GROUP}/cgroup.procs"
        )
    };
    check(&host, &each(&memory, &enter), &run)?;
    // Where there is no room the guest has run all the same.
    host.sh("dd if=/dev/zero of=/tmp/full/a bs=4k 2>/dev/null; true")?;
    let full = host.run("strait run --kernel /k/off --stats /tmp/full/stats")?;
    let said = full.errors.contains("can't be written to /tmp/full/stats: No space left");
    assert!(full.status == 0 && said && full.errors.contains("help: df "), "{full:?}");
    assert_eq!(host.sh("ls -A /tmp/full")?, "a\n");
    cannot_read_its_kernel(&host)
}

/// A kernel's file on a disk that fails (pread64, EIO), from each of its reads on, and in each alone.
fn cannot_read_its_kernel(host: &Host) -> TestResult {
    let (mut failed, mut which, mut is_reached) = (0, 0, true);
    while is_reached {
        (which, is_reached) = (which + 1, false);
        for rest in ["", "+"] {
            let fail = format!("agent fail {FAILED} 67 5 {which}{rest}");
            let answer = host.run(&format!("{fail} strait run --kernel /k/off --memory 16M"))?;
            let said = answer.errors;
            if host.run(&format!("[ -e {FAILED} ]"))?.status != 0 {
                assert_eq!((answer.status, said.as_str()), (0, ""));
                continue;
            }
            is_reached = true;
            failed += 1;
            // Where it fails once, it may be asked again why, and no longer know.
            let cause = if rest.is_empty() { "" } else { "Input/output error" };
            let is_told = said.starts_with("error: kernel /k/off can't be read: ")
                && said.contains(cause)
                && said
                    .contains("\n  help: cat /k/off >/dev/null shows whether it can be read now");
            assert!(answer.status == 1 && is_told, "{which}{rest}: {}: {said}", answer.status);
        }
    }
    // Its header, and the rest.
    assert!(failed >= 4, "{failed}");
    Ok(())
}

/// System calls that need something of the host, by their numbers (asm-generic/unistd.h), and what they
/// fail with where there is none; and whether so do all after them.
const CALLS: &[(&str, u32, i32, bool)] = &[
    ("openat", 56, libc::EMFILE, true),
    ("mmap", 222, libc::ENOMEM, true),
    ("ioctl", 29, libc::ENOMEM, false),
    ("eventfd2", 19, libc::EMFILE, true),
    ("memfd_create", 279, libc::EMFILE, true),
    ("clone", 220, libc::EAGAIN, true),
    ("clone3", 435, libc::EAGAIN, true),
    ("seccomp", 277, libc::ENOMEM, false),
    ("unshare", 97, libc::ENOMEM, false),
    ("mount", 40, libc::ENOMEM, false),
    ("epoll_create1", 20, libc::EMFILE, true),
    ("epoll_ctl", 21, libc::ENOSPC, true),
    ("signalfd4", 74, libc::EMFILE, true),
    ("pipe2", 59, libc::EMFILE, true),
    ("socketpair", 199, libc::EMFILE, true),
    ("fcntl", 25, libc::EMFILE, true),
    ("madvise", 233, libc::ENOMEM, true),
    ("mremap", 216, libc::ENOMEM, true),
    ("landlock_create_ruleset", 444, libc::ENOMEM, true),
    ("io_uring_setup", 425, libc::ENOMEM, true),
    ("bind", 200, libc::ENOMEM, true),
    ("listen", 201, libc::ENOMEM, true),
    ("connect", 203, libc::EAGAIN, true),
    ("sendmsg", 211, libc::ENOBUFS, true),
    ("recvmsg", 212, libc::ENOBUFS, true),
    ("ftruncate", 46, libc::ENOSPC, true),
    ("pwrite64", 68, libc::ENOSPC, false),
    ("pread64", 67, libc::ENOMEM, false),
    ("prctl", 167, libc::EPERM, false),
    ("mkdirat", 34, libc::ENOSPC, true),
    ("flock", 32, libc::ENOLCK, false),
    ("getdents64", 61, libc::ENOMEM, false),
];

/// Those that are tried in the suite, each at one of so many.
const SAMPLE: &[(&str, u64)] =
    &[("openat", 60), ("mmap", 30), ("ioctl", 60), ("eventfd2", 6), ("unshare", 2), ("mount", 2)];

/// Which call has failed, once one has.
const FAILED: &str = "/failed";

/// What is said where a thread has no filter: it ends the process at once.
const UNFILTERED: &str = "a thread can't filter its system calls";

#[test]
fn a_call_that_fails_is_told() -> TestResult {
    let host = boot()?;
    let (run, before) = (run("8M", "--stats /tmp/stats"), state(&host)?);
    let is_soak = std::env::var_os(SOAK).is_some();
    let mut random = u64::from(std::process::id());
    let mut below = |limit: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % limit
    };
    let (mut runs, mut failed, mut faults) = (0, 0, Vec::new());
    for (name, call, error, and_all_after) in CALLS {
        let sampled = SAMPLE.iter().find(|(sampled, _)| sampled == name).map(|(_, among)| *among);
        let mut which = match sampled {
            _ if is_soak => 1,
            Some(among) => 1 + below(among),
            None => continue,
        };
        let mut is_reached = true;
        while is_reached {
            for rest in ["", "+"].into_iter().take(1 + usize::from(*and_all_after && is_soak)) {
                let fail = format!("timeout 100 agent fail {FAILED} {call} {error} {which}{rest}");
                // Whether anybody listens at its socket is asked by connect, at the end, too.
                let may_mend = *rest == *"+" || *name == "connect";
                let outcome = attempt(&host, &format!("exec {fail} {run}"), &before, may_mend)?;
                let whose = host.run(&format!("cat {FAILED}"))?.output;
                is_reached = is_soak && !whose.is_empty();
                let (status, said) = (outcome.status, outcome.said);
                println!("{name} {which}{rest} of {whose}: status {status}: {said}");
                (runs, failed) = (runs + 1, failed + u32::from(status != 0));
                faults.extend(outcome.fault.filter(|_| !said.contains(UNFILTERED)));
                if !whose.is_empty() && ["unshare", "mount"].contains(name) {
                    // No guest has less of a sandbox; and its server is well.
                    let is_refused = said.contains("error: the sandbox: ");
                    let fault = format!("{name} {which}{rest}: status {status}: {said}");
                    let is_told = status == 1 && is_refused && !said.contains("doesn't answer");
                    faults.extend((!is_told).then_some(fault));
                }
            }
            which += 1 + below(which.div_ceil(4));
        }
    }
    println!("{failed} of {runs} runs failed");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert!(failed > 0);
    Ok(())
}
