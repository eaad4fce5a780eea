//! Guests of several vCPUs, and many guests on one host.

use super::figure::Figure;
use super::run_times;
use super::table::float;
use crate::harness::{Failure, Host};

/// vCPUs, and the most instructions from process start to process end of a guest that powers off at once.
const VCPUS: [(u32, f64); 2] = [(8, 4_000_000.0), (32, 9_900_000.0)];

/// How many guests there are at once.
const GUESTS: u32 = 64;
/// The most instructions that each of them takes that starts and powers off beside the others.
const EACH: f64 = 2_400_000.0;
/// The most memory that is each guest's alone or its part of what they share, in KiB.
const PSS: f64 = 200.0;

/// Measures.
///
/// # Errors
///
/// A guest fails.
pub(super) fn measure(host: &Host) -> Result<Vec<Figure>, Failure> {
    let figure = |what: String, measured, limit| Figure { what, measured, limit };
    let mut figures = Vec::new();
    // KVM frees what it knows of several vCPUs after a grace period of RCU (kvm_destroy_mpidr_data), idle for
    // some ticks of the host's clock.
    host.sh("echo 1 >/sys/kernel/rcu_expedited")?;
    for (count, limit) in VCPUS {
        let start = run_times(host, &format!("/bin/strait run --kernel /k/off --cpus {count}"))?;
        figures.push(figure(format!("start of {count} vCPUs, instr"), float(start.wall), limit));
    }
    host.sh("echo 0 >/sys/kernel/rcu_expedited")?;
    let all = format!("for i in $(seq {GUESTS}); do strait run --kernel /k/off & done; wait");
    let start = run_times(host, &format!("sh -c '{all}'"))?;
    let each = float(start.wall) / f64::from(GUESTS);
    figures.push(figure(format!("{GUESTS} guests at once: each, instr"), each, EACH));
    figures.extend(waiting(host)?);
    Ok(figures)
}

/// What guests take that wait for an interrupt.
fn waiting(host: &Host) -> Result<[Figure; 2], Failure> {
    let figure = |what: &str, measured, limit| {
        let what = format!("{GUESTS} guests that wait: {what}");
        Figure { what, measured, limit }
    };
    host.sh(&format!(
        "for i in $(seq {GUESTS}); do strait run --kernel /k/wait >/dev/null 2>&1 & echo $!; done >/tmp/guests"
    ))?;
    host.until(&format!(
        "[ $(for i in $(cat /tmp/guests); do cat /proc/$i/task/*/syscall; done | grep -c '^29 ') = {GUESTS} ]"
    ))?;
    let pss = "for i in $(cat /tmp/guests); do grep ^Pss: /proc/$i/smaps_rollup; done | awk '{ s += $2 } END { print s }'";
    let pss = number(&host.sh(pss)?)?;
    let wakeups = "for i in $(cat /tmp/guests); do cat /proc/$i/task/*/status; done | awk '/ctxt_switches/ { s += $2 } END { print s }'";
    let before = number(&host.sh(wakeups)?)?;
    host.sh("sleep 1")?;
    let after = number(&host.sh(wakeups)?)?;
    host.sh("for i in $(cat /tmp/guests); do kill $i; while [ -e /proc/$i ]; do :; done; done")?;
    Ok([
        figure("PSS each, KiB", pss / f64::from(GUESTS), PSS),
        figure("wake-ups in a second", after - before, 0.0),
    ])
}

fn number(said: &str) -> Result<f64, Failure> {
    said.trim().parse().map_err(|_| Failure::new(format!("not a number: {said}")))
}
