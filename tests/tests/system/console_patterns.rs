//! Runs that end by what the guest prints, and the log of its consoles.

use tests::harness::{Board, Host, Launch, TestResult};

const SIGTERM: i32 = 15;

/// The exit status of a run, and what strait said on standard error.
fn end(host: &Host, launch: &Launch) -> Result<(i32, String), tests::harness::Failure> {
    let answer = host.run(&format!(
        "strait {} </dev/null 2>/tmp/said >/tmp/printed; status=$?; cat /tmp/said; exit $status",
        launch.arguments()
    ))?;
    Ok((answer.status, answer.output))
}

#[test]
fn what_the_console_prints_ends_the_run() -> TestResult {
    let host = Board::new().boot()?;
    // A guest that would go on, on either console, ends at once, with all that it has printed shown.
    for (launch, cmdline) in [
        ("--timeout 60", ""),
        ("--timeout 60 --cpus 2 --console off --virtio-console stdio", "console=hvc0"),
    ] {
        let until = format!("{launch} --until '/^GUEST (READY|LATE)/' --fail-on 'not printed'");
        let launch = Launch::model().cmdline(cmdline).with(&until);
        let expected = "strait: the guest's console has `/^GUEST (READY|LATE)/` (--until)\n";
        assert_eq!(end(&host, &launch)?, (0, expected.to_owned()));
        host.sh("grep -q 'GUEST READY' /tmp/printed")?;
    }
    // A kernel that panics, and would be a reset or a crash.
    let launch = Launch::model().does("panic").with("--fail-on '/Kernel [Pp]anic - .* syncing/'");
    let (status, said) = end(&host, &launch.with("--until never --stats /tmp/stats"))?;
    assert_eq!(status, 5, "{said}");
    assert!(
        said.contains("(--fail-on): ") && said.contains("Kernel panic - not syncing"),
        "{said}"
    );
    host.sh("grep -q '\"ending\": \"fail-on\"' /tmp/stats")?;
    // A power-off without what was waited for is no success; one with it that came last is.
    let launch = Launch::model().does("poweroff").with("--until never --until '/also never/'");
    let expected = "strait: the guest powered off, and its console never had `never`, `/also never/` (--until)\n";
    assert_eq!(end(&host, &launch)?, (5, expected.to_owned()));
    let launch = Launch::model().does("poweroff").with("--until 'reboot: Power down'");
    assert_eq!(end(&host, &launch)?.0, 0);
    Ok(())
}

#[test]
fn the_log_has_the_consoles_lines_with_times() -> TestResult {
    let host = Board::new().boot()?;
    let options = "--log /tmp/console.log --virtio-console file:/dev/null";
    let launch = Launch::model().cmdline("console=hvc0 ignore_loglevel").with(options);
    let strait = host.strait(&launch.arguments())?;
    host.until("grep -q 'GUEST READY' /tmp/console.log")?;
    strait.signal(SIGTERM)?;
    assert_eq!(strait.exit_status()?, 128 + SIGTERM);
    let log = host.sh("cat /tmp/console.log")?;
    let mut before = 0.0;
    let mut names = Vec::new();
    for line in log.lines() {
        let (stamp, text) = line.strip_prefix('[').and_then(|line| line.split_once("] ")).unwrap();
        let time: f64 = stamp.trim().parse().unwrap();
        assert!(time >= before, "{line}");
        before = time;
        names.push(text.split_once(": ").unwrap().0.to_owned());
    }
    assert!(before > 0.0 && log.contains("] serial: Booting Linux"), "{log}");
    names.sort();
    names.dedup();
    assert_eq!(names, ["serial", "virtio"], "{log}");
    assert!(!log.contains('\r') && log.ends_with('\n'));
    // A file that can't be had is said before the guest starts.
    let missing = host.strait(&Launch::model().with("--log /no/such").arguments())?;
    assert_eq!(missing.exit_status()?, 1);
    let said = missing.output();
    assert!(
        said.contains("--log /no/such: it can't be written")
            && said.contains("help: --log PATH in a directory"),
        "{said}"
    );
    Ok(())
}
