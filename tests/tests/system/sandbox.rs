//! What the process with the guest gives up, and what its end by accident leaves behind.

use tests::harness::{Board, Launch, PLATFORM_DMA, TestResult, payload};

/// What `/proc/PID/task/*/status` says of each thread that has given everything up.
const NOTHING: [&str; 6] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];

#[test]
fn every_thread_has_given_everything_up() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(PLATFORM_DMA[0])?;
    host.sh(
        "dd if=/dev/zero of=/tmp/disk bs=1M count=4 2>/dev/null; adduser -D -u 1000 me || true",
    )?;
    let launch = Launch::model().with(&format!(
        "--vfio-platform {} --block /tmp/disk --stats /tmp/stats --log-level info",
        PLATFORM_DMA[0]
    ));
    let mut guest = host.launch(&launch)?;
    guest.sh("dd if=/dev/zero of=/dev/vda bs=4k count=16 oflag=direct 2>/dev/null")?;
    let vmm = host.vmm(guest.pid()?)?;
    let threads = host.sh(&format!("cat /proc/{vmm}/task/*/status"))?;
    println!("{}", guest.process().output());
    let mut seen = 0;
    for line in threads.lines() {
        let Some((key, value)) = line.split_once(":\t") else { continue };
        if key == "Uid" || key == "Gid" {
            let mut ids = value.split_whitespace().map(|id| id.parse().unwrap_or(0));
            assert!(ids.all(|id: u32| id >= 0x7000_0000), "{line}");
        } else if key == "Groups" {
            assert_eq!(value.trim(), "", "{line}");
        } else if NOTHING.contains(&key) {
            let expected = u64::from(key == "NoNewPrivs");
            assert_eq!(u64::from_str_radix(value.trim(), 16), Ok(expected), "{line}");
            seen += 1;
        }
    }
    let count = threads.lines().filter(|line| line.starts_with("Name:")).count();
    assert!(count >= 3 && seen == count * NOTHING.len(), "{threads}");
    // Nothing is to be found by a path.
    assert_eq!(host.sh(&format!("ls -A /proc/{vmm}/root/"))?, "");
    for kind in ["mnt", "ipc", "uts"] {
        let differs =
            format!("[ $(readlink /proc/{vmm}/ns/{kind}) != $(readlink /proc/1/ns/{kind}) ]");
        host.sh(&differs)?;
    }
    let limits = host.sh(&format!("grep -E 'core|open files' /proc/{vmm}/limits"))?;
    let files = host
        .sh(&format!("cd /proc/{vmm}/fd && for fd in *; do readlink $fd; done | sort | uniq -c"))?;
    println!("{limits}{files}");
    // What is open is a device of this guest, of the kernel's, or what statistics are read from.
    let allowed = [
        "anon_inode:",
        "pipe:",
        "socket:",
        "/dev/null",
        "/dev/kvm",
        "/dev/iommu",
        "/dev/vfio/",
        "/tmp/disk",
        "/proc/",
        "/sys/kernel/debug/",
    ];
    for file in files.lines().filter_map(|line| line.trim().split_once(' ')).map(|(_, file)| file) {
        assert!(allowed.iter().any(|start| file.starts_with(start)), "{file} is open");
    }
    guest.process().signal(10)?;
    host.until("grep -q '\"injected\"' /tmp/stats")?;
    assert_eq!(guest.power_off()?, 0);
    host.sh("grep -q '\"exit_status\": 0' /tmp/stats")?;
    Ok(())
}

#[test]
fn a_process_that_is_killed_leaves_nothing_behind() -> TestResult {
    let host = Board::new().file("k/spin", payload::spin()).boot()?;
    let device = PLATFORM_DMA[0];
    let script = format!(
        "driver=$(readlink /sys/bus/platform/devices/{device}/driver)
         for round in 1 2 3 4 5 6 7 8 9 10; do
           set -- 9 11 7; shift $((round % 3)); signal=$1
           strait run --kernel /k/spin --bind --vfio-platform {device} --console unix:/tmp/console \
             --stats /tmp/stats 2>/tmp/errors & strait=$!
           until vmm=$(grep -ls \"^PPid:.$strait$\" /proc/[0-9]*/status); do :; done
           usleep $((round * 7919 % 10 * 20000))
           vmm=${{vmm#/proc/}}; kill -$signal ${{vmm%/status}} || true
           wait $strait; status=$?
           [ $status = $((128 + signal)) ] || {{ echo $round: $status; cat /tmp/errors; exit 1; }}
           grep -q \"signal $signal\" /tmp/errors || exit 2
           [ ! -e /tmp/console ] || exit 3
           [ -z \"$(pidof strait)\" ] || exit 4
           [ -z \"$(ls /sys/kernel/debug/kvm | grep -- -)\" ] || exit 5
           [ \"$(readlink /sys/bus/platform/devices/{device}/driver)\" = \"$driver\" ] || exit 6
         done"
    );
    host.sh(&script)?;
    Ok(())
}
