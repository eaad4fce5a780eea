//! The guest's console on a person's terminal.

use tests::harness::{Board, Failure, Host, Launch, Process, TestResult};

const CTRL_A: &str = "\x01";
const CTRL_C: &str = "\x03";

/// A shell on a terminal of its own that starts a guest, says how strait ended, and how the
/// terminal was before and after.
fn start(host: &Host, launch: &Launch) -> Result<Process, Failure> {
    let mut shell = host.on_terminal(&format!(
        "trap '' INT TERM; echo before=$(stty -g); \
         (trap - INT TERM; exec strait {}); \
         echo status=$?; echo after=$(stty -g); echo over; read -r _",
        launch.arguments()
    ))?;
    shell.wait_for("GUEST READY: ")?;
    host.until("pidof strait >/dev/null")?;
    Ok(shell)
}

/// Waits for the end; strait's exit status, and that the terminal is what it was.
fn end(shell: &mut Process) -> Result<i32, Failure> {
    shell.wait_for("over")?;
    let output = shell.output();
    let after = |name: &str| {
        let (_, rest) = output.rsplit_once(name).unwrap_or_default();
        rest.split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert!(!after("before=").is_empty());
    assert_eq!(after("before="), after("after="), "the terminal was not restored");
    Ok(after("status=").parse().unwrap_or(-1))
}

#[test]
fn ctrl_a_x_ends_the_run() -> TestResult {
    let host = Board::new().boot()?;
    for action in ["idle", "busy"] {
        let mut shell = start(&host, &Launch::model().does(action).with("--cpus 2"))?;
        shell.send(format!("{CTRL_A}x"))?;
        assert_eq!(end(&mut shell)?, 0);
        host.until("! pidof strait >/dev/null")?;
    }
    Ok(())
}

#[test]
fn keys_go_to_the_guest() -> TestResult {
    let host = Board::new().boot()?;
    let mut shell = start(&host, &Launch::model())?;
    shell.send("echo typed $((6 * 7))\n")?;
    shell.wait_for("typed 42")?;
    // Ctrl-C interrupts what runs in the guest, not strait.
    shell.send("(echo asleep; exec sleep 1000)\n")?;
    shell.wait_for("asleep")?;
    shell.send(CTRL_C)?;
    shell.send("echo interrupted $?\n")?;
    shell.wait_for("interrupted 130")?;
    // Ctrl-A twice is one Ctrl-A for the guest.
    shell.send("read -r key; printf %s \"$key\" | xxd -p; echo done\n")?;
    shell.send(format!("{CTRL_A}{CTRL_A}\n"))?;
    assert_eq!(shell.wait_for("done")?.split_whitespace().next(), Some("01"));
    shell.send("poweroff -f\n")?;
    assert_eq!(end(&mut shell)?, 0);
    Ok(())
}

#[test]
fn the_terminal_is_restored_after_every_kind_of_end() -> TestResult {
    let host = Board::new().boot()?;
    // SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGSEGV, SIGTERM.
    for signal in [1, 2, 3, 6, 11, 15] {
        let mut shell = start(&host, &Launch::model().does("idle"))?;
        host.sh(&format!("kill -{signal} $(pidof strait)"))?;
        assert_eq!(end(&mut shell)?, 128 + signal, "signal {signal}");
    }
    for (action, options, status) in
        [("poweroff", "", 0), ("reset", "", 3), ("panic", "", 4), ("busy", "--timeout 3", 124)]
    {
        let mut shell = host.on_terminal(&format!(
            "echo before=$(stty -g); strait {}; echo status=$?; echo after=$(stty -g); echo over; read -r _",
            Launch::model().does(action).with(options).arguments()
        ))?;
        assert_eq!(end(&mut shell)?, status, "{action}");
    }
    Ok(())
}

#[test]
fn a_hangup_ends_the_run() -> TestResult {
    let host = Board::new().boot()?;
    let launch = Launch::model().does("idle");
    let mut strait = host.on_terminal(&format!("exec strait {}", launch.arguments()))?;
    strait.wait_for("GUEST READY: ")?;
    strait.end_of_input()?;
    assert_ne!(strait.exit_status()?, 0);
    Ok(())
}

#[test]
fn pasted_text_arrives_whole() -> TestResult {
    let host = Board::new().boot()?;
    let mut guest = host.guest("--cpus 2")?;
    let lines: Vec<String> = (0..200).map(|n| format!("line {n} {}", "x".repeat(60))).collect();
    let text = lines.join("\n");
    let answer =
        guest.sh(&format!("cat >/tmp/pasted <<'END'\n{text}\nEND\nsha256sum </tmp/pasted"))?;
    let expected = host.sh(&format!("sha256sum <<'END'\n{text}\nEND"))?;
    assert_eq!(answer.trim(), expected.trim());
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn input_bursts_of_any_length_arrive() -> TestResult {
    let host = Board::new().boot()?;
    let mut guest = host.guest("")?;
    // The guest's driver reads at most 256 bytes each time it is called: whatever is left in the
    // UART then must be told again.
    for length in [100, 200, 210, 220, 230, 240, 260, 280, 300, 500, 530, 1000] {
        let answer = guest.sh(&format!("echo {} | wc -c", "x".repeat(length)))?;
        assert_eq!(answer.trim(), (length + 1).to_string());
    }
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn standard_input_may_be_empty_or_closed() -> TestResult {
    let host = Board::new().boot()?;
    let launch = Launch::model().does("poweroff").arguments();
    let answer = host.run(&format!("strait {launch} </dev/null"))?;
    assert_eq!((answer.status, answer.errors.as_str()), (0, ""));
    assert!(answer.output.contains("GUEST READY: poweroff"));
    assert_eq!(host.run(&format!("strait {launch} <&- >&- 2>&-"))?.status, 0);
    // Output that nobody takes must not stop the guest.
    let answer =
        host.run(&format!("{{ strait {launch}; echo $? >/tmp/status; }} | true; cat /tmp/status"))?;
    assert_eq!(answer.output.trim(), "0");
    Ok(())
}

#[test]
fn output_waits_for_a_slow_reader() -> TestResult {
    let host = Board::new().boot()?;
    let launch = Launch::model().does("count").arguments();
    // A reader that doesn't read at first: the guest says more than its pipe holds.
    let slow = host.start(&format!("strait {launch} | agent delayed-cat 3"))?;
    assert_eq!(slow.exit_status()?, 0);
    let numbers: Vec<u32> =
        slow.output().lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(numbers, (1..=1200).collect::<Vec<u32>>());
    Ok(())
}
