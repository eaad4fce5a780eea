//! Counting the system calls that strait makes in tests: see `cargo model calls`.
//!
//! The agent traces each run, if the environment's `STRAIT_CALLS` names a file for what it has counted.
//! `STRAIT_CALLS_OF=all` has all calls of threads that filter theirs counted but vCPUs' `KVM_RUN`, and none that
//! isn't allowed end a run; without it only those that end one are noted.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use super::host::Host;

/// Where strait's program is on the host, if it is traced.
pub(super) const PROGRAM: &str = "traced/strait";

/// What it is started by then.
const TRACED: &str = "\
#!/bin/sh
[ \"$1\" = run ] || exec /traced/strait \"$@\"
shift
exec agent trace WHICH /traced/calls /traced/strait run \"$@\"
";

/// The file for what is counted, if that is asked for.
fn file() -> Option<PathBuf> {
    std::env::var_os("STRAIT_CALLS").map(PathBuf::from)
}

/// The script that starts strait, if its calls are counted.
pub(super) fn script() -> Option<String> {
    file()?;
    let counts_all = std::env::var_os("STRAIT_CALLS_OF").is_some_and(|which| which == "all");
    Some(TRACED.replace("WHICH", if counts_all { "" } else { "kills" }))
}

/// Appends what was counted on a host to the file.
pub(super) fn keep(host: &Host) {
    let Some(file) = file() else { return };
    // Those of a host that has gone are lost.
    let calls = host.run("sleep 0.3; cat /traced/calls").map(|answer| answer.output);
    let file = OpenOptions::new().append(true).create(true).open(file);
    if let (Ok(calls), Ok(mut file)) = (calls, file) {
        let _ = file.write_all(calls.as_bytes());
    }
}
