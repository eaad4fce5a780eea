//! What a debugger waits for: round trips by GDB's protocol over a socket, debugger and strait together.

use super::figure::Figure;
use super::network::{each, nanoseconds};
use crate::harness::{Failure, Host};

/// Where strait listens.
const SOCKET: &str = "/tmp/gdb";

/// Round trips in the shorter of two runs whose difference counts.
const ROUND_TRIPS: u64 = 100;

/// What is asked for, as the agent takes it, and the most instructions that a round trip may take.
const PACKETS: [(&str, &str, f64); 4] = [
    ("GDB: read a register, instr", "p20", 180_000.0),
    ("GDB: read 64 bytes, instr", "m40000000,40", 200_000.0),
    ("GDB: step, instr", "'vCont;s:1'", 220_000.0),
    ("GDB: run and stop, instr", "interrupt", 450_000.0),
];

/// Measures.
///
/// # Errors
///
/// strait doesn't answer.
pub(super) fn measure(host: &Host) -> Result<Vec<Figure>, Failure> {
    let strait = host.strait(&format!("run --kernel /k/spin --gdb unix:{SOCKET}"))?;
    host.until(&format!("[ -e {SOCKET} ]"))?;
    let mut figures = Vec::new();
    for (what, packet, limit) in PACKETS {
        let run = |count| nanoseconds(&host.sh(&format!("agent gdb {SOCKET} {count} {packet}"))?);
        let measured = each(run(ROUND_TRIPS)?, run(2 * ROUND_TRIPS)?, ROUND_TRIPS);
        figures.push(Figure { what: what.into(), measured, limit });
    }
    strait.signal(15)?;
    strait.exit_status()?;
    Ok(figures)
}
