//! What a vCPU takes for an access that is traced, beside one that only traps. The newest events are kept, so
//! that the thread that makes words of them isn't measured: it works on another CPU.

use super::figure::Figure;
use super::per_access;
use super::table::float;
use crate::harness::{Failure, Host, PLATFORM_DMA};

/// The most that it may take, relative to one that traps, without and with the program counter, which is a
/// call for each access.
const LIMITS: [(&str, f64); 2] = [("pc=off", 1.1), ("pc=on", 1.3)];

/// Measures, by guests that read a register of a DMA controller.
///
/// # Errors
///
/// A run fails.
pub(super) fn measure(host: &Host) -> Result<Vec<Figure>, Failure> {
    let name = PLATFORM_DMA[0];
    host.bind(name)?;
    let access = |options: &str| {
        let kernel = |file: &str| format!("{file} --vfio-platform {name}{options}");
        per_access(host, &kernel("/k/register"), &kernel("/k/register2")).map(float)
    };
    let trapped = access(",mmap=off")?;
    let figure = |(pc, limit): (&str, f64)| {
        let traced = access(&format!(" --trace {name},out=/dev/null,last=100,{pc}"))?;
        let what = format!("trace: an access with {pc}, of one that traps");
        Ok(Figure { what, measured: traced / trapped, limit })
    };
    LIMITS.into_iter().map(figure).collect()
}
