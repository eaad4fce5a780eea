//! `cargo model bench`: what strait costs, beside its budgets and other VMMs.
//!
//! The model counts instructions: its clock advances by one nanosecond per instruction executed, so
//! that figures repeat whatever else this machine does.

mod debugger;
mod disk;
mod figure;
mod network;
mod peer;
mod sandbox;
mod scale;
mod table;
mod trace;

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use serde::Serialize;

use crate::artifacts::Artifacts;
use crate::harness::initramfs;
use crate::harness::{AMBA_DMA, Board, DmaTest, Failure, Host, PLATFORM_DMA, Summary, payload};

pub use figure::Figure;
pub use peer::Peer;

/// How often each program is measured; the median counts.
const RUNS: u32 = 5;
/// Accesses in the shorter of the two loops whose difference is the cost of one access.
const ACCESSES: u32 = 2000;
/// The serial port's line status register, where reading changes nothing (GPA).
const SERIAL_LSR: u32 = 0x0900_0005;
/// A register of the first assigned device, a PL330's identification (GPA).
const PERIPH_ID: u32 = 0x0c00_0fe0;
/// What the guest's kernel is told.
const CMDLINE: &str = "console=ttyS0 quiet";

/// What one VMM costs.
#[derive(Clone, Debug, Serialize)]
pub struct Costs {
    /// Its name.
    pub name: String,
    /// Wall time from process start to process end of a guest that powers off at once, in
    /// instructions.
    pub power_off_wall: u64,
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
    /// What a PL330 does by the host's own driver and, assigned, by a guest's.
    pub dma: Dma,
    /// What the sandbox costs, and strait's own devices.
    pub devices: Vec<Figure>,
}

/// Transfers per second of a DMA controller: the median of its channels, all of them at work.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Dma {
    /// By the host's own driver.
    pub native: f64,
    /// By the driver of a guest that it is assigned to.
    pub guest: f64,
}

impl Dma {
    /// The guest's rate relative to the host's.
    pub fn ratio(&self) -> f64 {
        self.guest / self.native
    }
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
        // Tests of limits need memory control groups; accounting every page would be measured too.
        .param(NO_ACCOUNTING)
        .memory("2G")
        .file("k/off", payload::power_off())
        .file("k/wait", payload::wait())
        .file("k/read", payload::read_byte(SERIAL_LSR, ACCESSES))
        .file("k/read2", payload::read_byte(SERIAL_LSR, 2 * ACCESSES))
        // The end of a guest with a device is rounded to a tick of the host's, of four million instructions.
        .file("k/register", payload::read_byte(PERIPH_ID, 20 * ACCESSES))
        .file("k/register2", payload::read_byte(PERIPH_ID, 40 * ACCESSES))
        .file("k/spin", payload::spin())
        .file("k/call", payload::hypercall(ACCESSES))
        .file("k/call2", payload::hypercall(2 * ACCESSES))
        .file("k/initrd", initramfs::power_off_guest(artifacts)?)
        // Some VMMs want an initrd for the payload too.
        .file("k/none", vec![0; 4096]);
    for peer in peers {
        board = board.file(&peer.place(), fs::read(peer.program())?);
    }
    let host = board.boot()?;
    // The kernel has the code of all filters in blocks of 2 MiB, and fills one when it is the first to be in
    // it. On other hosts there is always some of systemd's; here it is that of a guest that waits.
    let resident = host.strait("run --kernel /k/wait")?;
    host.until("grep -qs '^Seccomp:.*2' /proc/[0-9]*/task/*/status")?;
    let mut vmms = vec![strait(&host, artifacts)?];
    for peer in peers {
        vmms.push(costs_of(&host, peer)?);
    }
    let hypercall = per_access(&host, "/k/call", "/k/call2")?;
    let mut devices = sandbox::measure(&host)?;
    devices.extend(debugger::measure(&host)?);
    devices.extend(trace::measure(&host)?);
    devices.extend(scale::measure(&host)?);
    drop(resident);
    drop(host);
    devices.extend(network::measure(artifacts)?);
    devices.extend(disk::measure(artifacts)?);
    Ok(Report { vmms, hypercall, dma: dma(artifacts)?, devices })
}

fn strait(host: &Host, artifacts: &Artifacts) -> Result<Costs, Box<dyn Error>> {
    let power_off = run_times(host, "/bin/strait run --kernel /k/off")?;
    let boot = run_times(
        host,
        &format!("/bin/strait run --kernel /k/model --initrd /k/initrd --cmdline '{CMDLINE}'"),
    )?;
    Ok(Costs {
        name: "strait".into(),
        power_off_wall: power_off.wall,
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
        power_off_wall: power_off.wall,
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
    let said = host.sh(&format!("agent measure {RUNS} {command}"))?;
    sample(&said).ok_or_else(|| {
        Failure::new(format!("`{command}` in the model: not every run ended well:\n{said}"))
    })
}

/// Reads `agent measure`'s lines: wall ns, CPU ns, RSS KiB, exit status, which must be 0.
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

/// The kernel's parameter that turns memory control groups off
/// (Documentation/admin-guide/kernel-parameters.txt).
const NO_ACCOUNTING: &str = "cgroup_disable=memory";

/// The same work for both: not verified, since checking it would be most of what is counted.
const DMA_TEST: &str = "dmesg -c >/dev/null; insmod /m/dmatest.ko iterations=50 \
    test_buf_size=16384 max_channels=8 threads_per_chan=1 norandom=1 noverify=1 timeout=20000 \
    run=1 && cat /sys/module/dmatest/parameters/wait && rmmod dmatest && dmesg -c";

/// What a PL330 does when assigned to a guest, and what another one does driven by the host. The
/// time that the controllers themselves take isn't counted; the drivers' and the interrupts' is.
fn dma(artifacts: &Artifacts) -> Result<Dma, Box<dyn Error>> {
    let host = Board::with(artifacts).icount().param(NO_ACCOUNTING).boot()?;
    host.bind(PLATFORM_DMA[0])?;
    // Only one controller is left to the host: dmatest would take channels of both.
    host.bind(AMBA_DMA[0])?;
    let native = transfers(&host.sh(DMA_TEST)?)?;
    let mut guest = host.guest(&format!("--vfio-platform {}", PLATFORM_DMA[0]))?;
    let assigned = transfers(&guest.sh(DMA_TEST)?)?;
    guest.power_off()?;
    Ok(Dma { native, guest: assigned })
}

/// The median of the channels' rates in a log of dmatest's.
fn transfers(log: &str) -> Result<f64, Failure> {
    let test = DmaTest { copies: 50, ..DmaTest::default() };
    let summaries = test.check(log).map_err(Failure::new)?;
    let rates = summaries.iter().map(|summary: &Summary| summary.transfers_per_second);
    median(rates.collect()).ok_or_else(|| Failure::new("no channel was measured"))
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
