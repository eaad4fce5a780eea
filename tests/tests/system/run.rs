//! How a run ends, and with which exit status.

use tests::harness::{Board, Failure, Host, Launch, TestResult, payload};

const SIGINT: i32 = 2;
const SIGUSR1: i32 = 10;
const SIGTERM: i32 = 15;

fn board() -> Board {
    Board::new()
        .file("k/off", payload::power_off())
        .file("k/reset", payload::reset())
        .file("k/spin", payload::spin())
        .file("k/wait", payload::wait())
}

/// The exit status of strait with these arguments.
fn status(host: &Host, arguments: &str) -> Result<i32, Failure> {
    host.strait(arguments)?.exit_status()
}

/// The exit status and all that strait says with these arguments.
fn end(host: &Host, arguments: &str) -> Result<(i32, String), Failure> {
    let answer = host.run(&format!("strait {arguments} 2>&1"))?;
    Ok((answer.status, answer.output))
}

#[test]
fn the_exit_status_tells_power_off_reset_and_panic() -> TestResult {
    let host = board().boot()?;
    assert_eq!(end(&host, "run --kernel /k/off")?, (0, String::new()));
    let reset = (3, "strait: the guest asked for a reset\n".to_owned());
    assert_eq!(end(&host, "run --kernel /k/reset")?, reset);
    for (action, expected, text) in [
        ("poweroff", 0, ""),
        ("reset", 3, "strait: the guest asked for a reset\n"),
        ("panic", 4, "strait: the guest crashed\n"),
    ] {
        let launch = Launch::model().does(action).with("--cpus 2");
        let (status, said) = end(&host, &launch.arguments())?;
        assert_eq!(status, expected, "{action}: {said}");
        assert!(said.ends_with(text), "{action}: {said}");
    }
    Ok(())
}

#[test]
fn a_file_has_the_options_of_a_run() -> TestResult {
    let host = board().boot()?;
    let options = "run --kernel /k/reset --cpus 2 --stats /tmp/stats";
    host.sh(&format!("strait {options} --print-config >/tmp/guest.toml"))?;
    let reset = (3, "strait: the guest asked for a reset\n".to_owned());
    assert_eq!(end(&host, "run --config /tmp/guest.toml")?, reset);
    host.sh("grep -q '\"ending\": \"reset\"' /tmp/stats")?;
    assert_eq!(end(&host, "run --config /tmp/guest.toml --kernel /k/off")?, (0, String::new()));
    host.sh("echo 'cpus = 3' >>/tmp/guest.toml")?;
    let (status, said) = end(&host, "run --config /tmp/guest.toml")?;
    assert_eq!(status, 2);
    assert!(said.starts_with("error: --config /tmp/guest.toml:4: "), "{said}");
    Ok(())
}

#[test]
fn a_silent_guest_is_reported_once() -> TestResult {
    let host = board().boot()?;
    let still = "strait: the guest still ran after 11.5 s\n";
    let (status, said) = end(&host, "run --kernel /k/wait --timeout 11.5")?;
    assert_eq!(status, 124);
    assert!(
        said.starts_with("strait: warn: the guest has written nothing to its console for 10 s")
    );
    assert!(said.contains("earlycon") && said.ends_with(still), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    // Nobody listens, or there was a word.
    let silent = "run --kernel /k/wait --timeout 11.5 --console off";
    assert_eq!(end(&host, silent)?, (124, still.to_owned()));
    let options = "--timeout 11.5 --stats /tmp/stats";
    let (_, said) = end(&host, &Launch::model().does("idle").with(options).arguments())?;
    // On a busy machine it may take as long to its first word.
    let is_told_too_late = said.find("strait: warn").is_some_and(|at| at > 0);
    assert!(said.ends_with(still) && !is_told_too_late, "{said}");
    // The look at the console is no wake-up that the guest caused: the end is the only one.
    host.sh("grep -q '\"event_loop_wakeups\": 1,' /tmp/stats")?;
    Ok(())
}

#[test]
fn unwritable_statistics_do_not_change_the_exit_status() -> TestResult {
    let host = board().boot()?;
    host.sh("mkdir /tmp/small && mount -t tmpfs -o size=16k none /tmp/small")?;
    // Whoever can guess the name of the file that becomes the statistics gains nothing.
    let run = |options: &str| host.strait(&format!("run --kernel /k/wait {options}"));
    let guest = run("--stats /tmp/small/stats")?;
    host.until("[ -n \"$(ls /sys/kernel/debug/kvm | grep -- -)\" ]")?;
    host.sh(&format!("ln -s /tmp/victim /tmp/small/stats.{}", guest.pid()?))?;
    host.sh("dd if=/dev/zero of=/tmp/small/fill bs=1k count=64 2>/dev/null || true")?;
    guest.signal(SIGTERM)?;
    assert_eq!(guest.exit_status()?, 128 + SIGTERM);
    let said = guest.output();
    assert!(said.contains("strait: error: statistics can't be written to /tmp/small/stats"));
    // Two processes say so, in no order.
    assert!(said.contains("strait: ended by signal 15 (SIGTERM)\n"), "{said}");
    assert_eq!(host.run("ls /tmp/small/stats /tmp/victim")?.output, "");

    // No descriptors are left but those that are kept for this; then not even these.
    for (limit, written) in
        [("$(($(ls /proc/PID/fd | sort -n | tail -n 1) + 1))", true), ("3", false)]
    {
        let guest = run("--stats /tmp/stats")?;
        host.until("[ -n \"$(ls /sys/kernel/debug/kvm | grep -- -)\" ]")?;
        let pid = guest.pid()?;
        host.sh(&format!("agent files {pid} {}", limit.replace("PID", &pid.to_string())))?;
        guest.signal(SIGTERM)?;
        assert_eq!(guest.exit_status()?, 128 + SIGTERM);
        assert_eq!(host.run("rm /tmp/stats")?.status == 0, written, "{}", guest.output());
    }
    Ok(())
}

#[test]
fn a_timeout_ends_the_run_with_status_124() -> TestResult {
    let host = board().boot()?;
    for kernel in ["spin", "wait"] {
        for cpus in [1, 3] {
            let run = format!("run --kernel /k/{kernel} --cpus {cpus} --timeout 1");
            let began = host.sh("date +%s")?;
            let still = "strait: the guest still ran after 1 s\n";
            assert_eq!(end(&host, &run)?, (124, still.to_owned()), "{run}");
            let ended = host.sh("date +%s")?;
            let seconds = |text: &str| text.trim().parse::<u64>().unwrap_or_default();
            assert!(seconds(&ended) > seconds(&began), "{run} ended before its time");
        }
    }
    // On a busy machine a guest needs longer until it is busy itself.
    let mut was_busy = false;
    for seconds in [3, 15, 60] {
        let options = format!("--timeout {seconds} --cpus 2");
        let busy = host.strait(&Launch::model().does("busy").with(&options).arguments())?;
        assert_eq!(busy.exit_status()?, 124);
        was_busy = busy.output().contains("GUEST READY: busy");
        if was_busy {
            break;
        }
    }
    assert!(was_busy, "the guest never came up");
    // A guest that ends before its time is not affected.
    assert_eq!(status(&host, "run --kernel /k/off --timeout 30")?, 0);
    Ok(())
}

#[test]
fn sigint_and_sigterm_end_the_run() -> TestResult {
    let host = board().boot()?;
    for signal in [SIGINT, SIGTERM] {
        for launch in [Launch::model().does("idle"), Launch::model().does("busy").with("--cpus 2")]
        {
            let mut guest = host.launch(&launch.with("--stats /tmp/stats"))?;
            guest.process().signal(signal)?;
            assert_eq!(guest.exit_status()?, 128 + signal);
            let stats = host.sh("cat /tmp/stats; rm /tmp/stats")?;
            assert!(stats.contains("\"signal\""), "{stats}");
        }
    }
    assert_eq!(host.run("pidof strait")?.status, 1);
    Ok(())
}

#[test]
fn statistics_are_written_on_demand_and_at_the_end() -> TestResult {
    let host = board().boot()?;
    let mut guest = host.guest("--stats /tmp/stats --cpus 2")?;
    assert_ne!(host.run("[ -e /tmp/stats ]")?.status, 0);
    let mut exits = Vec::new();
    for _ in 0..2 {
        guest.sh("echo something on the console")?;
        guest.process().signal(SIGUSR1)?;
        host.until("[ -e /tmp/stats ]")?;
        let stats = host.sh("cat /tmp/stats; rm /tmp/stats")?;
        let stats: serde_json::Value = serde_json::from_str(&stats).expect("statistics are JSON");
        assert!(stats["exit_status"].is_null(), "{stats}");
        exits.push(stats["exits"]["mmio_write"].as_u64().expect("a counter"));
    }
    assert!(exits[0] > 0 && exits[1] > exits[0], "{exits:?}");
    let wall = host.exit_counts(host.vmm(guest.pid()?)?)?;
    assert!(wall.get("mmio_exit_user") >= exits[1], "{wall:?}");
    assert_eq!(guest.power_off()?, 0);
    let stats = host.sh("cat /tmp/stats")?;
    let stats: serde_json::Value = serde_json::from_str(&stats).expect("statistics are JSON");
    assert_eq!(stats["exit_status"], 0);
    assert_eq!(stats["ending"], "power-off");
    assert!(stats["first_instruction"]["cpu_ns"].as_u64().is_some_and(|ns| ns > 0), "{stats}");
    let counters = stats["kvm"]["vcpus"].as_array().expect("a list");
    assert_eq!(counters.len(), 2);
    assert!(counters[0]["mmio_exit_user"].as_u64() >= Some(exits[1]), "{stats}");
    Ok(())
}

#[test]
fn a_dry_run_prints_the_plan_and_runs_nothing() -> TestResult {
    let host = board().boot()?;
    let plan = host.sh("strait run --kernel /k/model --initrd /k/guest.cpio --cpus 3 --dry-run")?;
    let map = "0x040000000-0x04fffffff  RAM";
    for wanted in [
        "3 vCPU",
        "kernel: /k/model, uncompressed\n",
        "command line: console=ttyS0\n",
        map,
        "  initrd",
        "SPI 0    serial, edge",
        "cpu@2",
        "serial@9000000",
    ] {
        assert!(plan.contains(wanted), "no {wanted} in:\n{plan}");
    }
    assert_eq!(host.run("ls -d /sys/kernel/debug/kvm/[0-9]*")?.output, "");
    let alone = "strait run --kernel /k/off --cmdline 'a b' --no-default-cmdline --dry-run";
    assert!(host.sh(alone)?.contains("\ncommand line: a b\n"));
    Ok(())
}

#[test]
fn dump_dtb_writes_the_device_tree() -> TestResult {
    let host = board().boot()?;
    assert_eq!(status(&host, "run --kernel /k/off --dump-dtb /tmp/dtb")?, 0);
    // It holds the guest's seeds.
    assert!(host.sh("ls -l /tmp/dtb")?.starts_with("-rw------- "));
    // The blob's magic number (Devicetree Specification, "Header").
    assert_eq!(host.sh("xxd -p -l 4 /tmp/dtb")?.trim(), "d00dfeed");
    let mut guest = host.guest("--dump-dtb /tmp/dtb2")?;
    assert_eq!(guest.sh("tr -d '\\0' </proc/device-tree/serial@9000000/compatible")?, "ns16550a");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn sigkill_leaves_no_virtual_machine_behind() -> TestResult {
    let host = board().boot()?;
    let mut guest = host.launch(&Launch::model().does("busy").with("--cpus 2"))?;
    guest.process().signal(9)?;
    assert_eq!(guest.exit_status()?, 128 + 9);
    host.until("[ -z \"$(ls -d /sys/kernel/debug/kvm/[0-9]* 2>/dev/null)\" ]")?;
    assert_eq!(status(&host, "run --kernel /k/off")?, 0);
    Ok(())
}

/// Of a PL031: its identification is an AMBA bus' business, its alarm a guest's.
#[test]
fn the_rtc_alarm_interrupts_the_guest() -> TestResult {
    let host = Board::new().boot()?;
    let mut guest = host.guest("--cpus 2 --stats /tmp/stats")?;
    let interrupts = "sed -n '/rtc-pl031/{s/^ *[0-9]*: *\\([0-9]*\\) *\\([0-9]*\\) .*/\\1 \\2/p}' \
                      /proc/interrupts";
    let taken = |text: &str| -> u32 { text.split_whitespace().flat_map(str::parse::<u32>).sum() };
    let before = taken(&guest.sh(interrupts)?);
    for alarm in 1..3 {
        // The file holds the alarm's time until it has fired.
        let waited =
            guest.sh("cd /sys/class/rtc/rtc0 && echo 0 > wakealarm && echo +2 > wakealarm && \
                               began=$(cat since_epoch) && \
                               until [ -z \"$(cat wakealarm)\" ]; do sleep 0.1; done; \
                               echo $(($(cat since_epoch) - began))")?;
        let waited: u32 = waited.trim().parse().unwrap_or_default();
        assert!(waited >= 1, "it fired after {waited} s");
        assert_eq!(taken(&guest.sh(interrupts)?), before + alarm, "one interrupt an alarm");
    }
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
