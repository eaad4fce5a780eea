//! What the process with the guest gives up.

use tests::harness::{Board, Host, Launch, PLATFORM_DMA, TestResult, payload};

/// What `/proc/PID/task/*/status` says of each thread that has given everything up.
const NOTHING: [&str; 6] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];

/// Who isn't root.
const USER: u32 = 1000;

/// Checks that no thread of a process has any privilege, a file to be found by a path, or a user or group that
/// isn't as it is `expected`.
pub fn check_threads(host: &Host, vmm: u32, expected: impl Fn(u32) -> bool) -> TestResult {
    let threads = host.sh(&format!("cat /proc/{vmm}/task/*/status"))?;
    let mut seen = 0;
    for line in threads.lines() {
        let Some((key, value)) = line.split_once(":\t") else { continue };
        if key == "Uid" || key == "Gid" {
            let mut ids = value.split_whitespace().map(|id| id.parse().unwrap_or(0));
            assert!(ids.all(&expected), "{line}");
        } else if key == "Groups" {
            assert_eq!(value.trim(), "", "{line}");
        } else if NOTHING.contains(&key) {
            let expected = u64::from(key == "NoNewPrivs");
            assert_eq!(u64::from_str_radix(value.trim(), 16), Ok(expected), "{line}\n{threads}");
            seen += 1;
        }
    }
    let count = threads.lines().filter(|line| line.starts_with("Name:")).count();
    assert!(count >= 3 && seen == count * NOTHING.len(), "{threads}");
    // What has the files of a directory's, or the host's namespaces.
    let others = host.sh(&format!(
        "cd /proc/{vmm}/task; for thread in *; do ls -A $thread/root/ $thread/cwd/ | grep -v : || true
         for kind in mnt ipc uts user; do
           [ $(readlink $thread/ns/$kind) != $(readlink /proc/1/ns/$kind) ] || echo $thread: $kind
         done; done"
    ))?;
    assert_eq!(others.trim(), "", "{threads}");
    Ok(())
}

/// Checks that what is open is a device of this guest, of the kernel's, or what statistics are read from.
pub fn check_files(host: &Host, vmm: u32) -> TestResult {
    let allowed = [
        "anon_inode:",
        "pipe:",
        "socket:",
        "/dev/null",
        "/dev/iommu",
        "/dev/vfio/",
        "/dev/net/tun",
        "/dev/vhost-",
        "/memfd:",
        "/tmp/disk",
        "/proc/interrupts",
        "/sys/kernel/debug/irq/irqs/",
    ];
    let own = [format!("/proc/{vmm}/fdinfo/"), format!("/sys/kernel/debug/kvm/{vmm}-")];
    let files = host.sh(&format!("cd /proc/{vmm}/fd && for fd in *; do readlink $fd; done"))?;
    for file in files.lines() {
        let mut allowed = allowed.into_iter().chain(own.iter().map(String::as_str));
        assert!(allowed.any(|start| file.starts_with(start)), "{file} is open:\n{files}");
    }
    Ok(())
}

#[test]
fn every_thread_has_given_everything_up() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(PLATFORM_DMA[0])?;
    host.sh("truncate -s 4M /tmp/disk")?;
    let launch = Launch::model().with(&format!(
        "--vfio-platform {} --block /tmp/disk --stats /tmp/stats --log-level info",
        PLATFORM_DMA[0]
    ));
    let mut guest = host.launch(&launch)?;
    guest.sh("dd if=/dev/zero of=/dev/vda bs=4k count=16 oflag=direct 2>/dev/null")?;
    let vmm = host.vmm(guest.pid()?)?;
    check_threads(&host, vmm, |id| id >= 0x7000_0000)?;
    let limits = host.sh(&format!("grep -E 'core|open files' /proc/{vmm}/limits"))?;
    let most = |name: &str| {
        let line = limits.lines().find(|line| line.contains(name)).unwrap_or_default();
        line.split_whitespace().rev().nth(1).and_then(|number| number.parse::<u32>().ok())
    };
    assert_eq!(most("core"), Some(0), "{limits}");
    assert!(most("open files").is_some_and(|files| files < 512), "{limits}");
    check_files(&host, vmm)?;
    guest.process().signal(10)?;
    host.until("grep -q '\"injected\"' /tmp/stats")?;
    assert_eq!(guest.power_off()?, 0);
    host.sh("grep -q '\"exit_status\": 0' /tmp/stats")?;
    Ok(())
}

#[test]
fn the_threads_of_servers_connections_have_no_more() -> TestResult {
    let host = Board::new().boot()?;
    host.sh("chmod 666 /dev/kvm && chmod 1777 /tmp")?;
    for user in [0, USER] {
        let run_as = if user == 0 { String::new() } else { format!("agent as {user} ") };
        let serve = |kind: &str| {
            let socket = format!("/tmp/{kind}{user}.sock");
            let mut server =
                host.start(&format!("exec {run_as}agent {kind} serve {socket} 2>&1"))?;
            server.wait_for("serving")?;
            Ok::<_, tests::harness::Failure>(server)
        };
        let (_function, backend) = (serve("vfio-user")?, serve("vhost-user")?);
        let launch = Launch::model().program(&format!("{run_as}strait")).with(&format!(
            "--vfio-user /tmp/vfio-user{user}.sock --vhost-user rng,socket=/tmp/vhost-user{user}.sock"
        ));
        let mut guest = host.launch(&launch)?;
        let vmm = host.vmm(guest.pid()?)?;
        check_threads(&host, vmm, |id| if user == 0 { id >= 0x7000_0000 } else { id == user })?;
        check_files(&host, vmm)?;
        assert!(guest.sh("agent vfio-user drive 0000:00:01.0")?.contains("passed"));
        // One that was lost is reached again, by the process that may.
        backend.signal(9)?;
        guest.process().wait_for("strait waits for another")?;
        let _again = serve("vhost-user")?;
        guest.process().wait_for("there is a backend again\n")?;
        check_threads(&host, vmm, |id| if user == 0 { id >= 0x7000_0000 } else { id == user })?;
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}

#[test]
fn a_host_without_landlock_or_namespaces_gives_the_rest() -> TestResult {
    let board = Board::new().param("lsm=capability").file("k/wait", payload::wait());
    let host = board.boot()?;
    host.sh("chmod 666 /dev/kvm && chmod 1777 /tmp && echo 0 >/proc/sys/user/max_user_namespaces")?;
    let checked = host.run("agent as 1000 strait check")?.output;
    for part in ["Landlock", "namespaces"] {
        let line = checked.lines().find(|line| line.contains(&format!("sandbox: {part}")));
        assert!(line.is_some_and(|line| !line.starts_with("fine")), "{checked}");
    }
    for (program, mode, said, privileges) in [
        ("", "on", "no Landlock", "1"),
        ("agent as 1000 ", "on", "no namespaces", "1"),
        ("", "off", "", "0"),
    ] {
        let command = format!(
            "{program}strait run --kernel /k/wait --sandbox {mode} --log-level info 2>/tmp/said & \
             until grep -qs vcpu0 /proc/$!/task/*/comm; do sleep 0.05; done; cat /tmp/said; \
             grep -h -e NoNewPrivs -e CapBnd /proc/$!/task/*/status | sort -u; kill $!; wait $!"
        );
        let answer = host.run(&command)?;
        assert_eq!(answer.status, 143, "{answer:?}");
        let given_up = format!("NoNewPrivs:\t{privileges}");
        let found = answer.output.contains(said) && answer.output.contains(&given_up);
        assert!(found, "{program}{mode}: {}", answer.output);
        assert_eq!(answer.output.matches("NoNewPrivs").count(), 1, "{}", answer.output);
        // Of root, who needs no namespace of users for it.
        if (program, mode) == ("", "on") {
            assert!(answer.output.contains("CapBnd:\t0000000000000000"), "{}", answer.output);
        }
    }
    Ok(())
}
