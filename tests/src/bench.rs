//! `cargo model bench`: what strait costs, beside its budgets and other VMMs.
//!
//! The model counts instructions: its clock advances by one nanosecond per instruction executed, so
//! that figures repeat whatever else this machine does.

mod peer;
mod table;

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use serde::Serialize;

use crate::artifacts::Artifacts;
use crate::harness::initramfs;
use crate::harness::{AMBA_DMA, Board, DmaTest, Failure, Host, PLATFORM_DMA, Summary, payload};

pub use peer::Peer;

/// How often each program is measured; the median counts.
const RUNS: u32 = 5;
/// Accesses in the shorter of the two loops whose difference is the cost of one access.
const ACCESSES: u32 = 2000;
/// The serial port's line status register, where reading changes nothing (GPA).
const SERIAL_LSR: u32 = 0x0900_0005;
/// What the guest's kernel is told.
const CMDLINE: &str = "console=ttyS0 quiet";

/// What one VMM costs.
#[derive(Clone, Debug, Serialize)]
pub struct Costs {
    /// Its name.
    pub name: String,
    /// CPU time of a guest that powers off at once, in instructions.
    pub power_off_cpu: u64,
    /// Its largest resident set, in KiB.
    pub power_off_rss: u64,
    /// Wall time from process start to process end of kernel and initrd to power-off, in
    /// instructions.
    pub boot_wall: u64,
    /// An access that the VMM emulates, in instructions; for strait only, as the address is its.
    pub mmio_exit: Option<u64>,
    /// Size of the stripped binary in bytes.
    pub binary: u64,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// strait, then the others.
    pub vmms: Vec<Costs>,
    /// What a hypercall costs that KVM answers by itself, in instructions: the floor of an exit.
    pub hypercall: u64,
    /// Bytes per second of an assigned PL330 in a guest, relative to the host's own driver.
    pub dma_throughput: f64,
}

/// Measures and prints; as JSON if `json`.
///
/// # Errors
///
/// The model doesn't come up, or a command does not do what it should.
pub fn run(artifacts: &Artifacts, peers: &[Peer], json: bool) -> Result<ExitCode, Box<dyn Error>> {
    eprintln!("measuring in the model, counting instructions");
    let report = measure(artifacts, peers)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table::render(&report));
    }
    Ok(if table::missed(&report) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn measure(artifacts: &Artifacts, peers: &[Peer]) -> Result<Report, Box<dyn Error>> {
    let mut board = Board::with(artifacts)
        .icount()
        .memory("2G")
        .file("k/off", payload::power_off())
        .file("k/read", payload::read_byte(SERIAL_LSR, ACCESSES))
        .file("k/read2", payload::read_byte(SERIAL_LSR, 2 * ACCESSES))
        .file("k/call", payload::hypercall(ACCESSES))
        .file("k/call2", payload::hypercall(2 * ACCESSES))
        .file("k/initrd", initramfs::power_off_guest(artifacts)?)
        // Some VMMs want an initrd for the payload too.
        .file("k/none", vec![0; 4096]);
    for peer in peers {
        board = board.file(&peer.place(), fs::read(peer.program())?);
    }
    let host = board.boot()?;
    let mut vmms = vec![strait(&host, artifacts)?];
    for peer in peers {
        vmms.push(costs_of(&host, peer)?);
    }
    let hypercall = per_access(&host, "/k/call", "/k/call2")?;
    drop(host);
    Ok(Report { vmms, hypercall, dma_throughput: dma_throughput(artifacts)? })
}

fn strait(host: &Host, artifacts: &Artifacts) -> Result<Costs, Box<dyn Error>> {
    let power_off = run_times(host, "/bin/strait run --kernel /k/off")?;
    let boot = run_times(
        host,
        &format!("/bin/strait run --kernel /k/model --initrd /k/initrd --cmdline '{CMDLINE}'"),
    )?;
    Ok(Costs {
        name: "strait".into(),
        power_off_cpu: power_off.cpu,
        power_off_rss: power_off.rss,
        boot_wall: boot.wall,
        mmio_exit: Some(per_access(host, "/k/read", "/k/read2")?),
        binary: fs::metadata(&artifacts.strait)?.len(),
    })
}

fn costs_of(host: &Host, peer: &Peer) -> Result<Costs, Box<dyn Error>> {
    let power_off = run_times(host, &peer.command("/k/off", "/k/none"))?;
    let boot = run_times(host, &peer.command("/k/model", "/k/initrd"))?;
    Ok(Costs {
        name: peer.name().to_owned(),
        power_off_cpu: power_off.cpu,
        power_off_rss: power_off.rss,
        boot_wall: boot.wall,
        mmio_exit: None,
        binary: fs::metadata(peer.program())?.len(),
    })
}

/// One program's cost: medians of time in ns, that is instructions, and the largest RSS in KiB.
struct Sample {
    wall: u64,
    cpu: u64,
    rss: u64,
}

/// Runs a command, as the model's shell takes it, several times.
fn run_times(host: &Host, command: &str) -> Result<Sample, Failure> {
    let said = host.sh(&format!("probe measure {RUNS} {command}"))?;
    sample(&said).ok_or_else(|| {
        Failure::new(format!("`{command}` in the model: not every run ended well:\n{said}"))
    })
}

/// Reads `probe measure`'s lines: wall ns, CPU ns, RSS KiB, exit status, which must be 0.
fn sample(said: &str) -> Option<Sample> {
    let mut wall = Vec::new();
    let mut cpu = Vec::new();
    let mut rss = 0;
    for line in said.lines() {
        let numbers: Vec<u64> =
            line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let [run_wall, run_cpu, run_rss, 0] = numbers[..] else { return None };
        wall.push(run_wall);
        cpu.push(run_cpu);
        rss = rss.max(run_rss);
    }
    Some(Sample { wall: median(wall)?, cpu: median(cpu)?, rss })
}

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> Option<T> {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied()
}

/// Instructions per round of a payload's loop: the difference between one that does it twice as
/// often and one that doesn't, so that all else cancels out.
fn per_access(host: &Host, once: &str, twice: &str) -> Result<u64, Failure> {
    let cpu = |kernel| {
        run_times(host, &format!("/bin/strait run --kernel {kernel}")).map(|sample| sample.cpu)
    };
    Ok(cpu(twice)?.saturating_sub(cpu(once)?) / u64::from(ACCESSES))
}

/// How many times the guest's and the host's throughput are measured in turn.
const DMA_ROUNDS: u32 = 5;
/// The same work for both: as much as fits the buffer, at the same place, not verified.
const DMA_TEST: &str = "dmesg -c >/dev/null; insmod /m/dmatest.ko iterations=100 \
    test_buf_size=16384 max_channels=8 threads_per_chan=1 norandom=1 noverify=1 timeout=20000 \
    run=1 && cat /sys/module/dmatest/parameters/wait && rmmod dmatest && dmesg -c";

/// The throughput of a PL330 assigned to a guest relative to that of another PL330 driven by the
/// host, by the clock on the wall: the time that a transfer takes is not counted in instructions.
fn dma_throughput(artifacts: &Artifacts) -> Result<f64, Box<dyn Error>> {
    let host = Board::with(artifacts).cpus(1).boot()?;
    host.bind(PLATFORM_DMA[0])?;
    // Only one controller is left to the host: dmatest would take channels of both.
    host.bind(AMBA_DMA[0])?;
    let mut guest = host.guest(&format!("--vfio-platform {}", PLATFORM_DMA[0]))?;
    let mut ratios = Vec::new();
    for _ in 0..DMA_ROUNDS {
        let native = throughput(&host.sh(DMA_TEST)?)?;
        let assigned = throughput(&guest.sh(DMA_TEST)?)?;
        ratios.push(assigned / native);
    }
    guest.power_off()?;
    median(ratios).ok_or_else(|| "no throughput was measured".into())
}

/// The channels' rates in a log of dmatest's, added up.
fn throughput(log: &str) -> Result<f64, Failure> {
    let test = DmaTest { copies: 100, ..DmaTest::default() };
    let summaries = test.check(log).map_err(Failure::new)?;
    let rates = summaries
        .iter()
        .map(|s: &Summary| f64::from(u32::try_from(s.kilobytes_per_second).unwrap_or(u32::MAX)));
    Ok(rates.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_good_runs_counts() {
        let sample = sample("30 3 100 0\n10 1 300 0\n20 2 200 0\n").unwrap();
        assert_eq!((sample.wall, sample.cpu, sample.rss), (20, 2, 300));
    }

    #[test]
    fn a_run_that_failed_is_no_measurement() {
        for said in ["", "10 1 300 1\n", "10 1 300 0\nsh: not found\n", "10 1 300\n"] {
            assert!(sample(said).is_none(), "{said}");
        }
    }
}
