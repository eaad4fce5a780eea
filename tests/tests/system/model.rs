//! The system model itself: what every other test relies on.

use tests::harness::{AMBA_DMA, Board, DmaTest, Interrupts, PLATFORM_DMA, Summary, TestResult};

#[test]
fn the_host_has_its_configured_cpus_files_and_parameters() -> TestResult {
    let host =
        Board::new().cpus(3).memory("2G").param("loglevel=5").file("tmp/note", "here").boot()?;
    assert_eq!(host.sh("nproc")?, "3\n");
    assert_eq!(host.sh("cat /tmp/note")?, "here");
    assert!(host.sh("cat /proc/cmdline")?.contains(" loglevel=5"));
    host.sh("[ -c /dev/kvm ] && [ -c /dev/vfio/vfio ] && [ -d /sys/kernel/debug/kvm ]")?;
    for name in PLATFORM_DMA {
        assert_eq!(host.driver(name)?, None, "{name}");
    }
    for name in AMBA_DMA {
        assert_eq!(host.driver(name)?.as_deref(), Some("dma-pl330"), "{name}");
    }
    Ok(())
}

#[test]
fn a_host_with_gicv2_has_kvm() -> TestResult {
    let host = Board::new().gic(2).boot()?;
    assert!(host.sh("cat /proc/interrupts")?.contains("GICv2"));
    host.sh("[ -c /dev/kvm ]")?;
    Ok(())
}

#[test]
fn commands_return_status_and_both_streams() -> TestResult {
    let host = Board::new().boot()?;
    let answer = host.run("echo out; echo err >&2; exit 7")?;
    assert_eq!(
        (answer.status, answer.output.as_str(), answer.errors.as_str()),
        (7, "out\n", "err\n")
    );
    assert_eq!(host.run("kill -9 $$")?.status, 128 + 9);
    assert!(host.sh("false").is_err_and(|failure| failure.to_string().contains("status 1")));
    assert_eq!(
        host.sh("seq 1 20000 | tail -n 1; seq 1 20000 >/tmp/s; cat /tmp/s | wc -l")?,
        "20000\n20000\n"
    );
    Ok(())
}

#[test]
fn processes_run_concurrently() -> TestResult {
    let host = Board::new().boot()?;
    let mut one = host.start("cat; echo one ends")?;
    let mut two = host.start("while read line; do echo \"two: $line\"; done; exit 5")?;
    two.send("b\n")?;
    two.wait_for("two: b\n")?;
    one.send("a\n")?;
    one.wait_for("a\n")?;
    assert_eq!(one.ended(), None);
    one.end_of_input()?;
    one.wait_for("one ends\n")?;
    assert_eq!(one.exit_status()?, 0);
    two.end_of_input()?;
    assert_eq!(two.exit_status()?, 5);
    let sleeper = host.start("exec sleep 1000")?;
    host.until(&format!("grep -q sleep /proc/{}/comm", sleeper.pid()?))?;
    sleeper.signal(15)?;
    assert_eq!(sleeper.exit_status()?, 128 + 15);
    Ok(())
}

#[test]
fn processes_run_on_a_terminal() -> TestResult {
    let host = Board::new().boot()?;
    let mut shell = host.on_terminal("stty size; trap 'echo interrupted' INT; exec sh -i")?;
    shell.wait_for("24 80")?;
    shell.send("sleep 1000\n")?;
    shell.wait_for("sleep 1000")?;
    host.until("pidof sleep")?;
    shell.send("\x03")?;
    host.until("! pidof sleep")?;
    shell.send("exit 3\n")?;
    assert_eq!(shell.exit_status()?, 3);
    let hung_up = host.on_terminal("exec sleep 1000")?;
    hung_up.pid()?;
    hung_up.end_of_input()?;
    assert_eq!(hung_up.exit_status()?, 128 + 1);
    Ok(())
}

#[test]
fn the_hosts_own_driver_copies_memory() -> TestResult {
    let host = Board::new().boot()?;
    let test = DmaTest { copies: 10, size: 4096, channels: 16 };
    let DmaTest { copies, size, channels } = test;
    host.sh(&format!(
        "insmod /m/dmatest.ko iterations={copies} test_buf_size={size} max_channels={channels} \
         threads_per_chan=1 timeout=20000 run=1 && cat /sys/module/dmatest/parameters/wait"
    ))?;
    let summaries: Vec<Summary> = test.check(&host.sh("dmesg")?).unwrap_or_default();
    assert_eq!(summaries.len(), 16, "{}", host.sh("dmesg")?);
    // Two interrupts that come together may be handled as one, but each line is used.
    let interrupts = Interrupts::parse(&host.sh("cat /proc/interrupts")?);
    let lines: Vec<u64> = AMBA_DMA.iter().flat_map(|dma| interrupts.of(dma)).collect();
    assert_eq!(lines.iter().filter(|&&count| count != 0).count(), 16, "{lines:?}");
    Ok(())
}

#[test]
fn devices_are_bound_and_unbound() -> TestResult {
    let host = Board::new().boot()?;
    for name in [PLATFORM_DMA[0], AMBA_DMA[0]] {
        let before = host.driver(name)?;
        host.bind(name)?;
        assert!(host.driver(name)?.is_some_and(|driver| driver.starts_with("vfio-")));
        host.sh(&format!("[ -c /dev/vfio/{} ]", host.group(name)?))?;
        host.unbind(name)?;
        assert_eq!(host.driver(name)?, before);
    }
    assert!(host.bind("2c0f0000.dma").is_err());
    Ok(())
}

#[test]
fn the_agent_drives_a_dma_controller() -> TestResult {
    // What lies beyond mem= is nobody's, so that the agent may have it.
    let host = Board::new().memory("1G").param("mem=512M").boot()?;
    let base = "0x2c0a0000";
    host.sh("agent memory fill 0x70010000 4096 0x5a && agent memory fill 0x70020000 4096 0")?;
    host.sh(&format!("agent pl330 {base} raise 3"))?;
    assert!(host.sh(&format!("agent pl330 {base} status"))?.contains("interrupts 0x8"));
    host.sh(&format!("agent pl330 {base} clear"))?;
    assert!(host.sh(&format!("agent pl330 {base} status"))?.contains("interrupts 0x0"));
    assert_eq!(host.run(&format!("agent pl330 {base} raise 32"))?.status, 1);
    // The kernel leaves a device without a driver no way through the SMMU.
    host.sh(&format!("agent pl330 {base} copy 1 0x70000000 0x70010000 0x70020000 4096 || true"))?;
    host.sh("agent memory check 0x70020000 4096 0")?;
    Ok(())
}

#[test]
fn a_canary_is_at_its_address_and_unchanged() -> TestResult {
    let host = Board::new().boot()?;
    let mut canary = host.start("exec agent canary 0x80000000 0xf0000000 2>&1")?;
    canary.wait_for("canary 0x")?;
    let address = canary.wait_for("\n")?;
    let address = u64::from_str_radix(address.trim(), 16).expect("a number");
    assert!((0x8000_0000..0xf000_0000).contains(&address), "{address:#x}");
    canary.send("\n")?;
    canary.wait_for("intact")?;
    assert_eq!(canary.exit_status()?, 0);
    Ok(())
}
