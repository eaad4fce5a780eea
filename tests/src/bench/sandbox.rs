//! What it costs to give everything up before a guest runs.

use super::figure::Figure;
use super::table::float;
use super::{Sample, run_times};
use crate::harness::{Failure, Host};

/// The most that a start may take more than without, in instructions of CPU time and in KiB.
const CPU: f64 = 150_000.0;
const RSS: f64 = 300.0;

/// Measures, by a guest that powers off at once.
///
/// # Errors
///
/// A run fails.
pub(super) fn measure(host: &Host) -> Result<Vec<Figure>, Failure> {
    let start =
        |mode| run_times(host, &format!("/bin/strait run --kernel /k/off --sandbox {mode}"));
    let (with, without) = (start("on")?, start("off")?);
    let more = |of: fn(&Sample) -> u64| float(of(&with)) - float(of(&without));
    let figure = |what: &str, measured, limit| Figure { what: what.to_owned(), measured, limit };
    Ok(vec![
        figure("sandbox: CPU time of a start, instr", more(|sample| sample.cpu), CPU),
        figure("sandbox: resident set, KiB", more(|sample| sample.rss), RSS),
    ])
}
