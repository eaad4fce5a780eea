//! What strait and its guest say when nobody reads it, or it can't be written; and the signals that
//! end a run, whenever they come.

use std::time::{Duration, Instant};

use tests::harness::{Board, Failure, Host, PLATFORM_DMA, Process, TestResult, payload};

const SIGTERM: i32 = 15;

/// The data register of the guest's serial port, and the panic device, by guest physical address.
const SERIAL: u32 = 0x0900_0000;
const PANIC: u32 = 0x0902_0000;

/// "A kernel for crash dumps takes over", to the panic device.
const CRASH_LOADED: u32 = 2;

/// More bytes than a small pipe and what strait keeps (16 KiB) hold.
const MUCH: u32 = 18_000;

/// More lines than anybody wants to read.
const FLOOD: u32 = 1000;

/// How long an end may take that waits for nobody, on a busy machine. Who waits for the reader of
/// [`unread`] does so for longer.
const SOON: Duration = Duration::from_secs(240);

fn board() -> Board {
    Board::new()
        .file("k/off", payload::power_off())
        .file("k/wait", payload::wait())
        .file("k/talk", payload::write_byte(SERIAL, u32::from(b'x'), u32::MAX))
        .file("k/much", payload::write_byte(SERIAL, u32::from(b'x'), MUCH))
        .file("k/flood", payload::write_byte(PANIC, CRASH_LOADED, FLOOD))
        .file("k/some", payload::write_byte(SERIAL, u32::from(b'x'), 1500))
}

/// `strait run` with these arguments, its standard output a pipe that is full and that nobody reads.
/// Its exit status will be in /tmp/status.
fn unread(arguments: &str) -> String {
    let run = format!("strait run {arguments}; echo $? >/tmp/status");
    format!("{{ head -c 70000 /dev/zero & sleep 1; {run}; }} | sleep 1000")
}

/// Waits until there is a thread of this name, in whichever process of strait's.
fn until_thread(host: &Host, name: &str) -> TestResult {
    host.until(&format!("grep -qs {name} /proc/[0-9]*/task/*/comm"))
}

/// Waits until a guest runs, and has said something.
fn running(host: &Host) -> TestResult {
    until_thread(host, "vcpu0")?;
    host.sh("sleep 2").map(|_| ())
}

/// The exit status left by [`unread`], which must come soon.
fn status(host: &Host, since: Instant) -> Result<i32, Failure> {
    host.until("[ -s /tmp/status ]")?;
    assert!(since.elapsed() < SOON, "it took {:?}", since.elapsed());
    Ok(host.sh("cat /tmp/status; rm /tmp/status")?.trim().parse().unwrap_or(-1))
}

#[test]
fn a_run_with_unread_output_can_be_ended() -> TestResult {
    let host = board().boot()?;
    for (arguments, expected) in
        [("--kernel /k/talk --cpus 2", 128 + SIGTERM), ("--kernel /k/talk --timeout 8", 124)]
    {
        let _run = host.start(&unread(&format!("{arguments} 2>/tmp/errors")))?;
        let mut began = Instant::now();
        if expected != 124 {
            running(&host)?;
            began = Instant::now();
            host.sh("kill $(pidof strait)")?;
        }
        assert_eq!(status(&host, began)?, expected, "{arguments}");
        let errors = host.sh("cat /tmp/errors")?;
        assert!(errors.contains("bytes of the guest's output were dropped"), "{errors}");
    }
    // Ctrl-A x, on a terminal whose standard output goes elsewhere.
    let terminal = host.on_terminal(&unread("--kernel /k/talk"))?;
    running(&host)?;
    let began = Instant::now();
    terminal.send("\x01x")?;
    assert_eq!(status(&host, began)?, 0);
    // Standard error that is no better off, with much or an error to tell.
    for (arguments, expected) in [("--kernel /k/flood", 0), ("--kernel /k/none", 1)] {
        let _run = host.start(&unread(&format!("{arguments} 2>&1")))?;
        let began = Instant::now();
        assert_eq!(status(&host, began)?, expected, "{arguments}");
    }
    Ok(())
}

#[test]
fn a_slow_reader_gets_all_output_and_a_stalled_one_has_it_counted() -> TestResult {
    let host = board().boot()?;
    // Exits by the thousand take their time on a busy machine.
    let slow =
        host.start("strait run --kernel /k/much | agent delayed-cat 3 | wc -c")?.timeout(300);
    assert_eq!((slow.exit_status()?, slow.output().trim()), (0, MUCH.to_string().as_str()));
    let _stalls = host.start(&unread("--kernel /k/much --stats /tmp/stats 2>/tmp/errors"))?;
    let written = host.start("until [ -s /tmp/stats ]; do sleep 0.2; done")?.timeout(300);
    assert_eq!(written.exit_status()?, 0);
    assert_eq!(status(&host, Instant::now())?, 0);
    let stats: serde_json::Value =
        serde_json::from_str(&host.sh("cat /tmp/stats")?).expect("statistics are JSON");
    let dropped = stats["output_dropped"]["console"].as_u64().unwrap_or_default();
    assert!(dropped > 0 && dropped <= u64::from(MUCH) - (12 << 10), "{dropped}");
    // What was still kept is dropped after the statistics were written.
    let errors = host.sh("cat /tmp/errors")?;
    let told = format!("{MUCH} bytes of the guest's output were dropped");
    assert!(errors.contains(&told), "{errors}");
    Ok(())
}

#[test]
fn failing_writes_do_not_end_a_run() -> TestResult {
    let host = board().boot()?;
    for output in [">/dev/full", "2>/dev/full", ">/dev/full 2>&1", ">&- 2>&-"] {
        for kernel in ["flood", "some"] {
            let run = format!("strait run --kernel /k/{kernel} {output}");
            assert_eq!(host.run(&run)?.status, 0, "{run}");
        }
    }
    assert_eq!(host.run("strait run --kernel /k/none 2>/dev/full")?.status, 1);
    // Readers that go away.
    for (kernel, what) in [("some", "2>&1"), ("flood", "2>&1 >/dev/null")] {
        let run = format!("strait run --kernel /k/{kernel} {what}");
        let answer =
            host.run(&format!("{{ {run}; echo $? >/tmp/status; }} | head -c 1 >/dev/null"))?;
        assert_eq!(answer.status, 0);
        assert_eq!(host.sh("cat /tmp/status")?.trim(), "0", "{run}");
    }
    // A file that may not grow.
    let answer = host.run("ulimit -f 1; strait run --kernel /k/some >/tmp/small")?;
    assert_eq!(answer.status, 0, "{}", answer.errors);
    assert!(answer.errors.contains("output can't be written"), "{}", answer.errors);
    // Answers that can't be given say so, whoever asks.
    for command in ["check", "device list", "run --kernel /k/off --dry-run"] {
        let answer = host.run(&format!("strait {command} >/dev/full"))?;
        let told = answer.errors.contains("error: standard output can't be written");
        assert!(told && answer.status == 1, "{command}: {answer:?}");
    }
    Ok(())
}

#[test]
fn repeated_messages_are_limited_in_the_log() -> TestResult {
    let host = board().boot()?;
    let answer = host.run("strait run --kernel /k/flood")?;
    assert_eq!(answer.status, 0);
    let lines = answer.errors.lines().count();
    assert!(lines < 12, "{lines} lines:\n{}", answer.errors);
    let left_out = format!("{} more lines were left out", FLOOD - 5);
    assert!(answer.errors.contains(&left_out), "{}", answer.errors);
    Ok(())
}

/// A guest with a device that is bound for it; it runs when this returns.
fn with_device(host: &Host) -> Result<Process, Failure> {
    let run = format!("run --kernel /k/wait --bind --vfio-platform {}", PLATFORM_DMA[0]);
    let strait = host.strait(&run)?;
    until_thread(host, "vcpu0")?;
    Ok(strait)
}

#[test]
fn every_terminating_signal_gives_the_device_back() -> TestResult {
    let host = board().boot()?;
    let before = host.driver(PLATFORM_DMA[0])?;
    // SIGUSR2, SIGALRM, SIGSTKFLT, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, real-time
    // ones; and the first of these, which is how strait stops a vCPU, does nothing.
    for signal in [12, 14, 16, 24, 25, 26, 27, 29, 30, 35, 50, 64] {
        let strait = with_device(&host)?;
        assert_eq!(host.driver(PLATFORM_DMA[0])?.as_deref(), Some("vfio-platform"));
        host.sh("kill -34 $(pidof strait)")?;
        strait.signal(signal)?;
        assert_eq!(strait.exit_status()?, 128 + signal);
        assert_eq!(host.driver(PLATFORM_DMA[0])?, before, "signal {signal}");
    }
    Ok(())
}

#[test]
fn a_signal_during_planning_ends_the_run() -> TestResult {
    let host = board().boot()?;
    let before = host.driver(PLATFORM_DMA[0])?;
    // A server that listens and doesn't answer.
    let mut server = host.start("exec agent vfio-user serve /tmp/hung.sock 2>&1")?;
    server.wait_for("serving")?;
    host.sh(&format!("kill -STOP {}", server.pid()?))?;
    let run = format!("run --kernel /k/wait --bind --vfio-platform {}", PLATFORM_DMA[0]);
    let strait = host.strait(&format!("{run} --vfio-user /tmp/hung.sock"))?;
    until_thread(&host, "vfio-user")?;
    strait.signal(SIGTERM)?;
    assert_eq!(strait.exit_status()?, 128 + SIGTERM, "{}", strait.output());
    // It didn't wait until the server's time was over.
    assert!(!strait.output().contains("doesn't answer"), "{}", strait.output());
    assert_eq!(host.driver(PLATFORM_DMA[0])?, before);
    // Whatever it is about to do: bind, open, reset, pin.
    for tenths in 0..6 {
        let strait = host.strait(&format!("{run} --memory 3G"))?;
        host.sh(&format!("sleep 0.{tenths}; kill {} || true", strait.pid()?))?;
        assert_eq!(strait.exit_status()?, 128 + SIGTERM, "{}", strait.output());
        assert_eq!(host.driver(PLATFORM_DMA[0])?, before, "after 0.{tenths} s");
    }
    Ok(())
}

#[test]
fn a_job_comes_back_to_the_foreground() -> TestResult {
    let host = board().boot()?;
    let mut shell = host.on_terminal(
        "set -m; strait run --kernel /k/wait; echo stopped; fg; echo status=$?; read -r _",
    )?;
    until_thread(&host, "vcpu0")?;
    host.sh("kill -STOP $(pidof strait)")?;
    shell.wait_for("stopped")?;
    // Ctrl-A x is strait's, which reads its terminal again.
    shell.send("\x01x")?;
    shell.wait_for("status=")?;
    assert_eq!(shell.wait_for("\n")?.trim(), "0");
    Ok(())
}

#[test]
fn a_job_in_the_background_is_not_stopped_by_its_terminal() -> TestResult {
    let host = board().boot()?;
    let mut shell = host.on_terminal(
        "set -m; strait run --kernel /k/wait; echo stopped; \
         for n in 1 2 3; do bg; sleep 1; kill -STOP %1; sleep 1; done; bg; sleep 1; echo going; \
         read -r _; sleep 1; read -r _; kill %1; wait %1; echo status=$?; read -r _",
    )?;
    until_thread(&host, "vcpu0")?;
    host.sh("kill -STOP $(pidof strait)")?;
    shell.wait_for("stopped")?;
    shell.wait_for("going")?;
    let state = host.sh("for pid in $(pidof strait); do grep State: /proc/$pid/status; done")?;
    assert!(!state.contains("T (stopped)"), "{state}");
    // What is typed is the shell's, and strait doesn't read it: that would stop it. The second line
    // waits for a second until the shell reads it.
    shell.send("\n\n")?;
    shell.wait_for(&format!("status={}", 128 + SIGTERM))?;
    Ok(())
}
