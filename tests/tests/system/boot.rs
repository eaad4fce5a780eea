//! Guests boot: with any number of CPUs, on either interrupt controller.

use tests::harness::{Board, Failure, Guest, Host, Launch, TestResult};

/// What a guest says of its CPUs and its interrupt controller.
fn machine(guest: &mut Guest) -> Result<(String, bool), Failure> {
    let cpus = guest.sh("nproc")?;
    let interrupts = guest.sh("grep arch_timer /proc/interrupts")?;
    Ok((cpus.trim().to_owned(), interrupts.contains("GICv3")))
}

fn boots_with(host: &Host, cpus: u32, gicv3: bool) -> TestResult {
    let mut guest = host.guest(&format!("--cpus {cpus}"))?;
    assert_eq!(machine(&mut guest)?, (cpus.to_string(), gicv3));
    // Every CPU really runs something.
    for cpu in 0..cpus {
        guest.sh(&format!("taskset -c {cpu} true"))?;
    }
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn one_four_and_eight_cpus_boot_on_gicv3() -> TestResult {
    let host = Board::new().boot()?;
    for cpus in [1, 4, 8] {
        boots_with(&host, cpus, true)?;
    }
    Ok(())
}

#[test]
fn an_its_is_created_on_request() -> TestResult {
    let host = Board::new().boot()?;
    let plan = |gic: &str| -> Result<bool, Failure> {
        let text =
            host.sh(&format!("strait run --kernel /k/model --gic {gic} --dry-run --json"))?;
        let plan: serde_json::Value = serde_json::from_str(&text).expect("a plan is JSON");
        Ok(plan["its"] == true)
    };
    assert!(!plan("3")? && !plan("3,its=off")?);
    let mut guest = host.guest("--gic 3,its=on")?;
    let said = guest.sh("dmesg | grep -i 'ITS [[@]'; \
                         ls -d /sys/firmware/devicetree/base/*/msi-controller@8080000")?;
    assert!(said.contains("ITS") && said.contains("msi-controller"), "{said}");
    assert_eq!(guest.power_off()?, 0);
    drop(host);
    let host = Board::new().gic(2).boot()?;
    let refused = host.run("strait run --kernel /k/model --gic auto,its=on")?;
    assert!(refused.status == 1 && refused.errors.contains("GICv2"), "{}", refused.errors);
    Ok(())
}

#[test]
fn guests_have_the_host_cpu_features() -> TestResult {
    let host = Board::new().cpu_features().boot()?;
    let (all, named) =
        ("sve 512\npauth\n", "SVE (128, 256, 384, 512 bits), pointer authentication, PMU");
    assert_eq!(host.sh("agent cpu")?, all);
    assert!(host.sh("strait check")?.contains(named));
    assert!(host.sh("strait run --kernel /k/model --dry-run")?.contains(named));
    for (options, has) in
        [("--cpus 2", all), ("--cpu-features -sve", "pauth\n"), ("--cpu-features -pauth,-sve", "")]
    {
        let mut guest = host.guest(options)?;
        assert_eq!(guest.sh("agent cpu")?.replace('\r', ""), has, "{options}");
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}

#[test]
fn one_four_and_eight_cpus_boot_on_gicv2() -> TestResult {
    let host = Board::new().gic(2).boot()?;
    for cpus in [1, 4, 8] {
        boots_with(&host, cpus, false)?;
    }
    Ok(())
}

#[test]
fn the_interrupt_controller_can_be_chosen() -> TestResult {
    let host = Board::new().gic(2).boot()?;
    let mut guest = host.guest("--gic 2")?;
    assert_eq!(machine(&mut guest)?, ("1".into(), false));
    assert_eq!(guest.power_off()?, 0);
    let refused = host.run("strait run --kernel /k/model --gic 3")?;
    assert_ne!(refused.status, 0);
    assert!(refused.errors.contains("GICv3"), "{}", refused.errors);
    Ok(())
}

#[test]
fn guests_boot_with_64_mib_and_5_gib() -> TestResult {
    let host = Board::new().memory("8G").boot()?;
    for (size, kilobytes) in [("64M", 0..65536), ("5G", 5_000_000..5_242_880)] {
        let mut guest = host.launch(&Launch::model().memory(size))?;
        let total = guest.sh("sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
        let total: u32 = total.trim().parse().unwrap_or_default();
        assert!(kilobytes.contains(&total), "{size}: {total} kB");
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}

#[test]
fn a_gzip_compressed_kernel_boots() -> TestResult {
    let host = Board::new().boot()?;
    host.sh("gzip -c /k/model > /tmp/kernel.gz")?;
    let launch = Launch::model().does("poweroff").kernel("/tmp/kernel.gz");
    assert_eq!(host.launch(&launch)?.exit_status()?, 0);
    Ok(())
}

#[test]
fn accesses_to_unassigned_addresses_do_not_end_the_guest() -> TestResult {
    let host = Board::new().boot()?;
    let mut guest = host.guest("--stats /tmp/stats")?;
    // Between the board's devices and those that are assigned.
    let nothing = "0xb000000";
    guest.sh(&format!("agent memory fill {nothing} 4096 0xff"))?;
    guest.sh(&format!("agent memory check {nothing} 4096 0"))?;
    // KVM isn't told what a load of a pair or of a vector reads: strait decodes the one, and to the other the
    // bus answers with an error.
    assert_eq!(guest.sh(&format!("agent memory pair {nothing}"))?.trim(), "0x00000000 0x00000000");
    let (status, text) = guest.run(&format!("agent memory vector {nothing}"))?;
    assert_eq!(status, 128 + 7, "no SIGBUS: {text}");
    assert!(guest.sh(&format!("agent memory vector 0x9020000; echo {nothing}"))?.contains(nothing));
    assert_eq!(guest.power_off()?, 0);
    let stats = host.sh("cat /tmp/stats")?;
    let stats: serde_json::Value = serde_json::from_str(&stats).expect("statistics are JSON");
    let unassigned = &stats["devices"]["unassigned"];
    assert_eq!((&unassigned["reads"], &unassigned["writes"]), (&1026.into(), &1024.into()));
    assert!(stats["exits"]["undecodable"].as_u64() >= Some(3), "{stats}");
    Ok(())
}
