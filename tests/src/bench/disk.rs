//! What a request of a guest's disk costs: reads by O_DIRECT of an image of 64 MiB in a tmpfs, guest and
//! host together.

use super::figure::Figure;
use super::table::float;
use crate::artifacts::Artifacts;
use crate::harness::{Board, Failure, Guest, Host};

/// Reads, as the agent in the guest takes them: bytes, how many at a time, how many in all; and the most
/// instructions that one may take. Others on this host's kernel: Firecracker 22 400, kvmtool 28 800; of
/// 1 MiB kvmtool 648 000.
///
/// Strait itself takes 1150 of the 19 300 for 4 KiB: 12 700 are the host kernel's, which switches between
/// the vCPU and the queue's thread (9000), copies (1200) and reads a tmpfs, and 5400 the guest's. Of the
/// 551 000 for 1 MiB it takes 1500: 299 000 are the host kernel's copying, 114 000 its way through a tmpfs,
/// page by page, and 121 000 the guest's, page by page, too. Where the pages of the guest's buffer aren't
/// next to each other, it is 50 000 more for the guest, and for strait and the kernel 100 for each page.
const READS: [(&str, &str, f64); 3] = [
    ("disk: read of 4 KiB, one after the other, instr", "4096 1 2000", 18_000.0),
    ("disk: read of 4 KiB, 32 at a time, instr", "4096 32 4096", 9000.0),
    ("disk: read of 1 MiB, in order, instr", "1048576 1 64 in-order", 520_000.0),
];

/// Exits to user space for a read: none, but for a stray one of the guest's clock.
const EXITS: f64 = 0.01;
/// How often a thread of strait's but the vCPUs' is woken for a read.
const WAKEUPS: f64 = 1.01;

/// Measures.
///
/// # Errors
///
/// The model or the guest doesn't come up, or a read fails.
pub(super) fn measure(artifacts: &Artifacts) -> Result<Vec<Figure>, Failure> {
    let host = Board::with(artifacts).icount().param(super::NO_ACCOUNTING).memory("2G").boot()?;
    host.sh("mount -t tmpfs none /tmp && dd if=/dev/urandom of=/tmp/disk bs=1M count=64")?;
    // The events of a PMU are switched with each vCPU, whoever uses them; most others have none.
    let mut guest = host.guest("--block /tmp/disk --cpu-features -pmu")?;
    // What both sides make at first is made now, and the host has noted which pages are in use.
    for read in ["1048576 1 192 in-order", "4096 1 500", "4096 32 1024"] {
        nanoseconds(&mut guest, read)?;
    }
    let mut figures = Vec::new();
    for (what, reads, limit) in READS {
        let measured = float(nanoseconds(&mut guest, reads)?);
        figures.push(Figure { what: what.into(), measured, limit });
    }
    let (exits, wakeups) = per_read(&host, &mut guest)?;
    let what = "disk: exits for a read of 4 KiB".into();
    figures.push(Figure { what, measured: exits, limit: EXITS });
    let what = "disk: wake-ups for it".into();
    figures.push(Figure { what, measured: wakeups, limit: WAKEUPS });
    guest.power_off()?;
    Ok(figures)
}

/// What each of some reads takes: as many instructions as nanoseconds.
fn nanoseconds(guest: &mut Guest, reads: &str) -> Result<u64, Failure> {
    let said = guest.sh(&format!("agent disk read /dev/vda {reads}"))?;
    said.trim().parse().map_err(|_| Failure::new(format!("a disk's reads: {said}")))
}

/// Exits to user space and wake-ups of a read: what 2000 cause more than 1000, so that the console's
/// cancel out.
fn per_read(host: &Host, guest: &mut Guest) -> Result<(f64, f64), Failure> {
    let pid = guest.pid()?;
    let mut counted = Vec::new();
    for reads in ["4096 1 1000", "4096 1 2000"] {
        let look = || -> Result<(u64, u64), Failure> {
            let wakeups = host.thread_wakeups(pid)?.of_devices();
            let wakeups = wakeups.iter().map(|(_, count)| count).sum();
            Ok((host.exit_counts(pid)?.to_user_space(), wakeups))
        };
        let before = look()?;
        nanoseconds(guest, reads)?;
        let after = look()?;
        counted.push((after.0.saturating_sub(before.0), after.1.saturating_sub(before.1)));
    }
    let [fewer, more] = counted[..] else { return Err(Failure::new("nothing was counted")) };
    let each = |more: u64, fewer: u64| (float(more) - float(fewer)) / 1000.0;
    Ok((each(more.0, fewer.0), each(more.1, fewer.1)))
}
