//! How runs are ended from outside, by the power button which SIGTERM presses, and what is told of their ends
//! to a service manager and to CI systems.

use std::time::{Duration, Instant};

use tests::harness::{Board, Failure, Guest, Launch, TestResult, payload};

const SIGTERM: i32 = 15;

/// Has the guest read so many events of its power button, each a `struct input_event` of 24 bytes, in the
/// background, and then do what follows; returns when it waits for them.
fn await_events(guest: &mut Guest, count: u32, then: &str) -> Result<(), Failure> {
    let read = format!("dd if=/dev/input/event0 of=/tmp/events bs=24 count={count} 2>/dev/null");
    let reads = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q event0";
    guest.sh(&format!("{read} && {then} & until {reads}; do :; done")).map(|_| ())
}

#[test]
fn sigterm_presses_the_power_button() -> TestResult {
    let host = Board::new().boot()?;
    let mut guest = host.guest("--grace 600 --cpus 2")?;
    await_events(&mut guest, 4, "touch /tmp/read")?;
    guest.process().signal(SIGTERM)?;
    guest.sh("until [ -e /tmp/read ]; do :; done")?;
    let events = guest.sh("wait; od -A n -v -t x2 -w24 /tmp/events")?;
    // Behind the times: type, code and value (input-event-codes.h): EV_KEY and KEY_POWER, pressed and
    // released, and EV_SYN behind each. The shell may say among them, with an empty line, that its job is done.
    let events: Vec<_> = events.lines().filter(|line| line.starts_with(" 0")).collect();
    let mut seen = events.iter().map(|line| line.split_whitespace().skip(8).collect::<Vec<_>>());
    for expected in ["0001 0074 0001 0000", "0000 0000 0000 0000", "0001 0074 0000 0000"] {
        assert_eq!(seen.next().unwrap_or_default().join(" "), expected, "{events:?}");
    }
    guest.process().signal(SIGTERM)?;
    assert_eq!(guest.exit_status()?, 128 + SIGTERM);

    // One that acts on it.
    let mut guest = host.guest("--grace 600")?;
    await_events(&mut guest, 1, "poweroff -f")?;
    guest.process().signal(SIGTERM)?;
    assert_eq!(guest.exit_status()?, 0);
    Ok(())
}

#[test]
fn a_guest_that_ignores_its_power_button_is_ended() -> TestResult {
    let host = Board::new().boot()?;
    let mut guest = host.launch(&Launch::model().does("idle").with("--grace 1.5"))?;
    let pressed = Instant::now();
    guest.process().signal(SIGTERM)?;
    guest.process().wait_for("1.5 s after its power button was pressed (--grace)")?;
    assert_eq!(guest.exit_status()?, 128 + SIGTERM);
    assert!(pressed.elapsed() >= Duration::from_millis(1500));
    let plan = host.sh(&format!("strait {} --grace 1 --dry-run", Launch::model().arguments()))?;
    assert!(plan.contains("0x009030000-0x009030fff  GPIO with the power button (PL061)"), "{plan}");
    // Without the option there is no button, and the end comes at once.
    let mut guest = host.guest("")?;
    guest.sh("[ ! -e /dev/input/event0 ] && [ ! -e /proc/device-tree/gpio-keys ]")?;
    guest.process().signal(SIGTERM)?;
    assert_eq!(guest.exit_status()?, 128 + SIGTERM);
    Ok(())
}

#[test]
fn a_signal_to_both_processes_is_one() -> TestResult {
    let host = Board::new().boot()?;
    // As from a shell to a job: the child gets each signal twice.
    let mut guest = host.guest("--grace 900 --stats /tmp/stats")?;
    await_events(&mut guest, 1, "touch /tmp/read")?;
    host.sh("kill -TERM $(pidof strait)")?;
    guest.sh("until [ -e /tmp/read ]; do :; done")?;
    assert_eq!(host.sh("pidof strait | wc -w")?, "2\n");
    // The next one is another.
    host.sh("sleep 1; kill -TERM $(pidof strait)")?;
    assert_eq!(guest.exit_status()?, 128 + SIGTERM);
    Ok(())
}

#[test]
fn whoever_starts_a_run_may_ignore_and_block_signals() -> TestResult {
    let host = Board::new().file("k/spin", payload::spin()).boot()?;
    // SIGHUP, as by nohup, and SIGCHLD; the one that interrupts vCPUs is blocked.
    let run = "agent without-signals 1,17 strait run --kernel /k/spin --cpus 2";
    for options in ["", "--stats /tmp/stats"] {
        let process = host.start(&format!("exec {run} {options}"))?;
        host.until("[ $(cat /proc/[0-9]*/task/*/comm | grep -c '^vcpu') = 2 ]")?;
        host.sh("kill -HUP $(pidof strait); kill -USR1 $(pidof strait)")?;
        if !options.is_empty() {
            host.until("[ -s /tmp/stats ]")?;
        }
        host.sh("kill -TERM $(pidof strait)")?;
        assert_eq!(process.exit_status()?, 128 + SIGTERM, "{options}");
    }
    Ok(())
}

#[test]
fn the_service_manager_is_told() -> TestResult {
    let host = Board::new().boot()?;
    let mut manager = host.start("exec agent datagrams /tmp/notify")?;
    host.until("[ -S /tmp/notify ]")?;
    let environment = "env NOTIFY_SOCKET=/tmp/notify WATCHDOG_USEC=1000000 strait";
    // With a process of its own for the guest, and without.
    for options in ["--stats /tmp/stats --grace 300", "--grace 300"] {
        let launch = Launch::model().program(environment).with(options);
        let mut guest = host.launch(&launch)?;
        let before = manager.wait_for("WATCHDOG=1\n")?;
        assert!(before.contains("READY=1, STATUS=The guest runs\n"), "{before}");
        manager.wait_for("WATCHDOG=1\n")?;
        await_events(&mut guest, 1, "poweroff -f")?;
        guest.process().signal(SIGTERM)?;
        manager.wait_for("STOPPING=1, STATUS=The guest's power button is pressed, EXTEND_TIMEOUT_USEC=300000000\n")?;
        manager.wait_for("STOPPING=1, STATUS=The guest has ended\n")?;
        assert_eq!(guest.exit_status()?, 0);
    }
    let launch = Launch::model().does("poweroff");
    let answer = host.run(&format!("NOTIFY_SOCKET=/no/such strait {} 2>&1", launch.arguments()))?;
    // A manager that is gone holds no guest up.
    assert!(answer.output.contains("NOTIFY_SOCKET is /no/such: "), "{}", answer.output);
    assert_eq!(answer.status, 0);
    Ok(())
}

#[test]
fn a_report_says_how_a_run_ended() -> TestResult {
    const SIGKILL: i32 = 9;
    let host = Board::new().boot()?;
    let report = || host.sh("cat /tmp/report; rm /tmp/report");
    let launch = Launch::model().does("count").with("--junit /tmp/report");
    host.sh(&format!("strait {} </dev/null >/dev/null", launch.arguments()))?;
    let text = report()?;
    assert!(text.contains("<testsuite name=\"strait\" tests=\"1\" failures=\"0\""), "{text}");
    assert!(text.contains("<testcase classname=\"strait.run\" name=\"model\" time=\""), "{text}");
    assert!(text.contains("GUEST READY: count\r\n1\r\n2\r\n") && text.contains("\n1200"));
    // A run that ends otherwise, one whose process is killed, and one that can't start.
    let launch = Launch::model().does("poweroff").with("--junit /tmp/report --until never");
    assert_eq!(host.run(&format!("strait {} </dev/null", launch.arguments()))?.status, 5);
    let text = report()?;
    assert!(text.contains("<failure type=\"not-found\" message=\"the guest powered off, and its"));
    let mut guest = host.guest("--junit /tmp/report")?;
    let child = format!("grep -ls '^PPid:.{}$' /proc/[0-9]*/status | cut -d/ -f3", guest.pid()?);
    host.sh(&format!("kill -{SIGKILL} $({child})"))?;
    guest.process().wait_for("signal 9")?;
    assert_eq!(guest.exit_status()?, 128 + SIGKILL);
    let text = report()?;
    assert!(
        text.contains(
            "<failure type=\"killed\" message=\"the guest's process was ended by signal 9"
        )
    );
    assert!(text.contains("failures=\"1\"") && text.contains("GUEST READY: shell"), "{text}");
    // Before there is a process for the guest, and in it.
    for options in ["--kernel /k/model --bind --vfio-platform none", "--kernel /no/such"] {
        assert_eq!(host.run(&format!("strait run --junit /tmp/report {options}"))?.status, 1);
        let text = report()?;
        assert!(text.contains("<failure type=\"failed\" message=\""), "{text}");
        assert!(text.contains(">exit status 1</failure>\n<system-out></system-out>"), "{text}");
    }
    Ok(())
}
