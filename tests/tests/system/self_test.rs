//! `strait device test`: the self-tests of devices.

use serde_json::Value;
use tests::harness::{AMBA_DMA, BACKENDS, Board, PLATFORM_DMA, TestResult, UART};

use super::device::json;

const SIGKILL: i32 = 9;

/// Checks the verdict on a PL330 that works.
fn passed(verdict: &Value) {
    assert_eq!(
        (&verdict["test"], &verdict["passed"]),
        (&"PL330".into(), &true.into()),
        "{verdict}"
    );
    let channels = verdict["channels"].as_array().map(Vec::as_slice).unwrap_or_default();
    assert_eq!(channels.len(), 8, "{verdict}");
    for (index, channel) in channels.iter().enumerate() {
        let number = |key: &str| channel[key].as_u64().unwrap_or_default();
        assert_eq!(number("transfers"), number("interrupts"), "{channel}");
        let longest = if index == 0 { 16 << 20 } else { 1 << 20 };
        assert!(number("transfers") >= 8 && number("bytes") > longest, "{channel}");
        assert!(number("bytes_per_second") > 0, "{channel}");
    }
    let aborts: Vec<&Value> = verdict["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|check| check["what"].as_str().is_some_and(|what| what.contains("aborts")))
        .collect();
    assert_eq!(aborts.len(), 2, "{verdict}");
    for (abort, why) in aborts.iter().zip(["data not readable", "data not writable"]) {
        let detail = abort["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("interrupt 8") && detail.contains(why), "{abort}");
    }
}

/// Checks the verdict on a device's isolation, of which the host's log says this.
pub fn isolated(verdict: &Value, logged: &str) {
    let isolation = &verdict["isolation"];
    assert_eq!(isolation["passed"], true, "{verdict:#}");
    assert_eq!(isolation["target"], "a page of strait's memory, at its physical address");
    let checks: Vec<&str> = isolation["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|check| check["what"].as_str())
        .collect();
    assert_eq!(checks, ["wild read", "wild write", "canary", "host's log"], "{isolation:#}");
    let lines = isolation["host_log"].as_array().map(Vec::as_slice).unwrap_or_default();
    let logged = |line: &Value| line.as_str().is_some_and(|line| line.contains(logged));
    assert!(lines.iter().any(logged), "{isolation:#}");
    // The event's record has the address.
    let address = isolation["address"].as_str().unwrap_or_default().trim_start_matches("0x");
    let is_there = |line: &Value| line.as_str().is_some_and(|line| line.contains(address));
    assert!(lines.iter().any(is_there), "{isolation:#}");
}

#[test]
fn functions_are_kept_from_what_is_not_theirs() -> TestResult {
    let host = Board::new()
        .device("edu,addr=7,dma_mask=0xffffffffffff")
        .device("nvme,serial=n,addr=8")
        .boot()?;
    host.sh("strait device bind 00:08.0")?;
    let verdict = json(&host, "device test 00:08.0 --iommu container")?;
    assert_eq!(verdict["passed"], true, "{verdict:#}");
    isolated(&verdict, "event 0x10 received");

    host.sh("strait device bind 00:07.0")?;
    let verdict = json(&host, "device test 00:07.0 --report /tmp/edu.html")?;
    assert_eq!(
        (&verdict["test"], &verdict["passed"]),
        (&"PCI".into(), &true.into()),
        "{verdict:#}"
    );
    isolated(&verdict, "event 0x10 received");
    let page = host.sh("cat /tmp/edu.html")?;
    for part in ["<h1>0000:00:07.0: ", "event 0x10 received", "1234:11e8", "wild write", "BAR 0"] {
        assert!(page.contains(part), "no {part}: {page}");
    }
    Ok(())
}

#[test]
fn the_pl330_self_test_passes_on_both_buses() -> TestResult {
    let host = Board::new().boot()?;
    for (name, backend) in [PLATFORM_DMA[1], AMBA_DMA[1]].into_iter().zip(BACKENDS) {
        let before = host.sh("dmesg | grep -c 'event 0x10 received' || true")?;
        host.sh(&format!("strait device bind {name}"))?;
        let verdict = json(&host, &format!("device test {name} --iommu {backend}"))?;
        assert_eq!(verdict["iommu"], backend, "{verdict}");
        passed(&verdict);
        isolated(&verdict, "event 0x10 received");
        // The host's SMMU has reported what wasn't mapped.
        let after = host.sh("dmesg | grep -c 'event 0x10 received'")?;
        assert_ne!(before, after);
        host.sh(&format!("strait device unbind {name}"))?;
    }
    // A guest's driver finds nothing left behind.
    let guest = host.guest(&format!("--bind --vfio-platform {}", PLATFORM_DMA[1]))?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn the_pl330_self_test_fails_without_interrupts() -> TestResult {
    let host = Board::new().boot()?;
    host.sh(&format!("strait device bind {}", PLATFORM_DMA[0]))?;
    // Somebody who keeps disabling its interrupts.
    let saboteur = host.start("while :; do agent pl330 0x2c0a0000 clear; done")?;
    let answer = host.run(&format!("strait device test {}", PLATFORM_DMA[0]))?;
    saboteur.signal(SIGKILL)?;
    assert_eq!(answer.status, 1, "{}", answer.output);
    assert!(answer.output.contains("FAIL"), "{}{}", answer.output, answer.errors);
    Ok(())
}

#[test]
fn other_devices_have_the_general_self_test() -> TestResult {
    let host = Board::new().uart().boot()?;
    host.sh(&format!("strait device bind {UART}"))?;
    for backend in BACKENDS {
        let verdict = json(&host, &format!("device test {UART} --iommu {backend}"))?;
        assert_eq!((&verdict["test"], &verdict["passed"]), (&"general".into(), &true.into()));
        let checks: Vec<&str> = verdict["checks"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|check| check["what"].as_str())
            .collect();
        for wanted in ["region 0", "interrupts pending", "4 KiB", "2 MiB", "1 GiB"] {
            assert!(checks.iter().any(|check| check.contains(wanted)), "no {wanted}: {checks:?}");
        }
    }
    Ok(())
}
