//! `cargo model demo`: the main job, told step by step.

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use crate::artifacts::Artifacts;
use crate::harness::{Board, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA, SteadyState};

/// The device that changes hands.
const DEVICE: &str = PLATFORM_DMA[0];
/// Where strait leaves its counters on the host.
const STATS: &str = "/tmp/stats.json";

/// Boots a host, gives a DMA controller to a guest, and has the guest copy memory with it.
/// Exit status 1 if that doesn't go as it should.
///
/// # Errors
///
/// A step fails; what everybody said until then has been printed.
pub fn run(artifacts: &Artifacts) -> Result<ExitCode, Box<dyn Error>> {
    let started = Instant::now();
    let host = boot(artifacts)?;
    bind(&host)?;
    let mut guest = start(&host)?;
    let test = DmaTest { copies: 50, ..DmaTest::LONG };
    let steady = test_dma(&host, &mut guest, test)?;
    let status = guest.power_off()?;
    println!("\nThe guest powered off; strait's exit status is {status}.");
    let stats = host.sh(&format!("cat {STATS}"))?;
    println!("\n{}", table(&steady, test, &exits(&stats)?, started));
    let faults = faults(&steady, status);
    for fault in &faults {
        eprintln!("error: {fault}");
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn boot(artifacts: &Artifacts) -> Result<Host, Failure> {
    println!("Booting the model host: QEMU's virt board, EL2, SMMUv3, four PL330s behind it.");
    let started = Instant::now();
    // With one CPU the host takes each interrupt before the guest starts the next transfer.
    let host = Board::with(artifacts).cpus(1).boot()?;
    let seconds = started.elapsed().as_secs_f64();
    let kernel = host.sh("uname -srm")?;
    let cpus = host.sh("nproc")?;
    println!("  up in {seconds:.1} s: {}, {} CPU", kernel.trim(), cpus.trim());
    Ok(host)
}

fn bind(host: &Host) -> Result<(), Failure> {
    println!("\nHanding {DEVICE} to VFIO.");
    let name = |driver: Option<String>| driver.unwrap_or_else(|| "none".into());
    let before = name(host.driver(DEVICE)?);
    host.bind(DEVICE)?;
    let (after, group) = (name(host.driver(DEVICE)?), host.group(DEVICE)?);
    println!("  driver: {before} → {after}; IOMMU group {group}");
    Ok(())
}

fn start(host: &Host) -> Result<Guest, Failure> {
    let launch = Launch::model().with(&format!("--vfio-platform {DEVICE} --stats {STATS}"));
    println!("\nStarting a guest.\n  # strait {}", launch.arguments());
    let started = Instant::now();
    let mut guest = host.launch(&launch)?;
    println!(
        "  its shell answers after {:.1} s; of the device it says",
        started.elapsed().as_secs_f64()
    );
    let lines = guest.sh("dmesg | grep -i 'pl330'")?;
    lines.lines().for_each(|line| println!("  | {line}"));
    Ok(guest)
}

fn test_dma(host: &Host, guest: &mut Guest, test: DmaTest) -> Result<SteadyState, Failure> {
    let DmaTest { copies, size, channels } = test;
    println!(
        "\nTesting it with the kernel's dmatest: {channels} channels at once, {copies} verified \
         copies each, up to {size} bytes."
    );
    let steady = SteadyState::measure(host, guest, test)?;
    for summary in &steady.summaries {
        println!(
            "  | {}: {} copies, {} failures, {} KB/s",
            summary.thread, summary.copies, summary.failures, summary.kilobytes_per_second
        );
    }
    Ok(steady)
}

/// strait's exits by reason, from what `--stats` wrote.
fn exits(stats: &str) -> Result<String, Failure> {
    let unreadable =
        |why: &dyn std::fmt::Display| Failure::new(format!("{STATS}: {why}:\n{stats}"));
    let stats: serde_json::Value = serde_json::from_str(stats).map_err(|e| unreadable(&e))?;
    let exits = stats.get("exits").and_then(serde_json::Value::as_object);
    let exits = exits.ok_or_else(|| unreadable(&"it has no exits"))?;
    Ok(exits
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect::<Vec<_>>()
        .join(", "))
}

fn table(steady: &SteadyState, test: DmaTest, exits: &str, started: Instant) -> String {
    let copies: u32 = steady.summaries.iter().map(|summary| summary.copies).sum();
    let failures: u32 = steady.summaries.iter().map(|summary| summary.failures).sum();
    let lines: Vec<String> = steady.lines.iter().map(u64::to_string).collect();
    let merged = u64::from(copies).saturating_sub(steady.lines.iter().sum());
    let merged = match merged {
        0 => String::new(),
        count => format!(" ({count} came together with another and were handled with it)"),
    };
    let rows = [
        ("transfers", format!("{copies} ({} channels × {})", test.channels, test.copies)),
        ("bytes", steady.bytes.to_string()),
        ("failures", failures.to_string()),
        ("interrupts per line", lines.join(" ") + &merged),
        ("exits to strait during the test", steady.costs.exits_to_user_space().to_string()),
        ("wake-ups of strait during the test", steady.costs.wakeups_of_the_vmm().to_string()),
        ("exits to strait, whole run", exits.to_owned()),
        ("wall time", format!("{:.1} s", started.elapsed().as_secs_f64())),
    ];
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a String can't fail.
        let _ = writeln!(text, "  {name:<36}{value}");
        text
    })
}

/// What didn't go as it should though nothing failed.
fn faults(steady: &SteadyState, status: i32) -> Vec<String> {
    let (exits, wakeups) = (steady.costs.exits_to_user_space(), steady.costs.wakeups_of_the_vmm());
    let checks = [
        (status != 0, format!("strait ended with status {status} instead of 0")),
        (exits != 0, format!("{exits} exits went to strait during the DMA test instead of 0")),
        (
            wakeups != 0,
            format!("strait was woken {wakeups} times during the DMA test instead of 0"),
        ),
    ];
    checks.into_iter().filter(|(wrong, _)| *wrong).map(|(_, text)| text).collect()
}

#[cfg(test)]
mod tests {
    use super::exits;

    #[test]
    fn exits_are_listed_by_reason() {
        let stats = r#"{"exits": {"mmio_read": 3, "mmio_write": 5}, "kvm": {}}"#;
        assert_eq!(exits(stats).unwrap(), "mmio_read 3, mmio_write 5");
        assert!(exits("{}").is_err());
        assert!(exits("none").is_err());
    }
}
