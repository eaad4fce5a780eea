//! What a run asks the host for, and doesn't get, at each step: an error of three parts, and a host that is
//! as before.

use tests::harness::{Board, Failure, Host, PLATFORM_DMA, TestResult, payload};

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
    host.sh("truncate -s 1M /tmp/disk && mkdir -p /tmp/full && mount -t tmpfs -o size=4k none /tmp/full && \
         mount -t cgroup2 none /sys/fs/cgroup && cd /sys/fs/cgroup && \
         echo '+memory +pids' >cgroup.subtree_control && mkdir job && agent vfio-user serve /tmp/v.sock \
         >/tmp/server 2>&1 & until [ -S /tmp/v.sock ]; do sleep 0.05; done")?;
    Ok(host)
}

/// A run with a device of each kind, and a parent.
fn run(more: &str) -> String {
    format!(
        "strait run --kernel /k/off --memory 64M --cpus 2 --bind --vfio-platform {} --vfio-pci {NVME} \
         --vfio-user /tmp/v.sock --block /tmp/disk --virtio-console unix:/tmp/console \
         --console file:/tmp/serial {more}",
        PLATFORM_DMA[0]
    )
}

/// Runs it in each of these ways, which a shell has before it. At the first at least it has to fail, and at
/// the last to end well. Each failure has to be told, and to leave the host as it was.
fn check(host: &Host, ways: &[String], run: &str) -> TestResult {
    let state = STATE.replace("DMA", PLATFORM_DMA[0]).replace("NVME", NVME);
    host.sh(": >/tmp/serial; : >/tmp/said")?;
    let before = host.sh(&format!("{state}; true"))?;
    let (mut failed, mut last, mut faults) = (0, 0, Vec::new());
    for way in ways {
        let answer = host.run(&format!(
            "({way}; exec {run}) 2>/tmp/said; status=$?; cat /tmp/said >&2; \
             {state}; exit $status"
        ))?;
        let (said, status) = (&answer.errors, answer.status);
        if answer.output != before {
            faults.push(format!("{way}: the host is another: {}, but was {before}", answer.output));
        }
        if status != 0 {
            let (error, help) = said.split_once("\n  help: ").unwrap_or((said, ""));
            if status != 1 || !error.contains("error: ") || help.trim().is_empty() {
                faults.push(format!("{way}: status {status}: {said}"));
            }
            println!("{way}: {said}");
            failed += 1;
        }
        last = status;
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(failed > 0 && last == 0, "{failed} of {ways:?} failed, the last with {last}");
    Ok(())
}

#[test]
fn whatever_the_host_has_too_little_of_is_told() -> TestResult {
    let host = boot()?;
    let run = run("");
    let each = |numbers: &[u32], way: &dyn Fn(u32) -> String| -> Vec<String> {
        numbers.iter().map(|number| way(*number)).collect()
    };
    let files: Vec<u32> = (4..28).step_by(3).chain([40, 64, 128, 160, 1024]).collect();
    check(&host, &each(&files, &|n| format!("ulimit -n {n}")), &run)?;
    let memory: Vec<u32> = (4..112).step_by(9).chain([4096]).collect();
    check(&host, &each(&memory, &|mib| format!("ulimit -v {}", mib << 10)), &run)?;
    let tasks: Vec<u32> = (1..9).chain([1000]).collect();
    let enter = |n| format!("echo {n} >{GROUP}/pids.max; echo 0 >{GROUP}/cgroup.procs");
    check(&host, &each(&tasks, &enter), &run)?;
    // Where there is no room the guest has run all the same.
    host.sh("dd if=/dev/zero of=/tmp/full/a bs=4k 2>/dev/null; true")?;
    let full = host.run("strait run --kernel /k/off --stats /tmp/full/stats")?;
    let said = full.errors.contains("can't be written to /tmp/full/stats: No space left");
    assert!(full.status == 0 && said && full.errors.contains("help: df "), "{full:?}");
    assert_eq!(host.sh("ls -A /tmp/full")?, "a\n");
    Ok(())
}
