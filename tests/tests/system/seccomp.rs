//! The filters of system calls: which threads have one, and what becomes of a call that isn't allowed.

use tests::harness::{Board, PLATFORM_DMA, TestResult, payload};

/// Calls that no thread may make, with the arguments that matter (asm-generic/unistd.h).
const FORBIDDEN: [(&str, &str); 9] = [
    ("openat", "56"),
    ("socket", "198 1 1"),
    ("connect", "203"),
    ("clone", "220 17"),
    ("execve", "221"),
    ("ptrace", "117"),
    ("bpf", "280"),
    ("mmap of executable memory", "222 0 4096 5 0x22 0xffffffffffffffff"),
    ("KVM_CREATE_VM", "29 3 0xae01"),
];

/// A guest that spins, with a device of each kind that has threads and needs nothing of the host.
const GUEST: &str = "strait run --kernel /k/spin --memory 16M --console file:/tmp/console \
                     --block /tmp/image --balloon free-page-reporting --vsock cid=5";

/// Whether the thread called `$thread` of process `$pid` has a filter.
const FILTERED: &str = "grep -qs 'Seccomp:.*2' /dev/null \
                        $(grep -lsx $thread /proc/$pid/task/*/comm | sed s/comm/status/)";

#[test]
fn a_call_that_is_not_allowed_ends_the_run() -> TestResult {
    let host = Board::new().cpus(2).file("k/spin", payload::spin()).boot()?;
    host.sh("truncate -s 1M /tmp/image")?;
    for thread in ["vcpu0", "block0-q0", "strait"] {
        for (name, call) in FORBIDDEN {
            let said = host.sh(&format!(
                "thread={thread}; {GUEST} >/tmp/said 2>&1 & pid=$!; \
                 until {FILTERED}; do sleep 0.02; done; \
                 agent inject $pid $thread {call}; wait $pid; echo status $?; cat /tmp/said"
            ))?;
            assert!(
                said.starts_with("killed by signal 31\nstatus 159\n"),
                "{thread}, {name}: {said}"
            );
        }
    }
    // Each of its threads.
    let threads = host.sh(&format!(
        "thread=strait; {GUEST} >/tmp/said 2>&1 & pid=$!; until {FILTERED}; do sleep 0.1; done; \
         until ! grep -q 'Seccomp:.*0' /proc/$pid/task/*/status; do sleep 0.1; done; \
         for task in /proc/$pid/task/*; do \
         echo $(cat $task/comm) $(sed -n 's/Seccomp:[^0-9]*//p; s/NoNewPrivs:[^0-9]*/nnp/p' $task/status); \
         done; kill $pid; wait $pid; true"
    ))?;
    assert!(threads.lines().all(|line| line.ends_with("nnp1 2")), "{threads}");
    for name in [
        "strait",
        "vcpu0",
        "serial-file",
        "block0-q0",
        "entropy",
        "balloon",
        "vsock-watch",
        "virtio-intx",
    ] {
        assert!(threads.lines().any(|line| line.starts_with(name)), "{name}: {threads}");
    }
    Ok(())
}

#[test]
fn the_parent_puts_right_what_a_call_that_is_not_allowed_leaves() -> TestResult {
    let host = Board::new().cpus(2).file("k/spin", payload::spin()).boot()?;
    let device = PLATFORM_DMA[0];
    let said = host.sh(&format!(
        "driver=$(readlink /sys/bus/platform/devices/{device}/driver)
         strait run --kernel /k/spin --memory 16M --bind --vfio-platform {device} --console unix:/tmp/console \
           --stats /tmp/stats 2>/tmp/said & strait=$!; thread=vcpu0
         until pid=$(grep -ls \"^PPid:.$strait$\" /proc/[0-9]*/status); do sleep 0.05; done
         pid=${{pid#/proc/}}; pid=${{pid%/status}}
         until {FILTERED}; do sleep 0.05; done
         agent inject $pid $thread 221; wait $strait; echo status $?
         [ \"$(readlink /sys/bus/platform/devices/{device}/driver)\" = \"$driver\" ] || echo bound
         [ ! -e /tmp/console ] || echo socket
         grep -q '\"ending\": \"killed\"' /tmp/stats || echo no statistics
         cat /tmp/said"
    ))?;
    assert!(said.starts_with("killed by signal 31\nstatus 159\nstrait: "), "{said}");
    assert!(said.contains("the guest's process was ended by signal 31 (SIGSYS)"), "{said}");
    Ok(())
}
