//! When the guest's process has ended: puts right what it has left, and says how it ended.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::Resources;
use crate::assigned;
use crate::cli::{ConsoleKind, GdbAddress, RunOptions};
use crate::error::Error;
use crate::exit_reason::signal_name;
use crate::{signals, stats, unix_listener};

/// The number of the statistics that are left before the guest runs.
pub(super) const FIRST: u64 = 1;

/// The name that such an ending has in statistics.
const KILLED: &str = "killed";

/// Puts everything right after the child's end with `status`, and answers the exit status. Statistics were
/// written up to the number `written`.
pub(super) fn settle(
    mut resources: Resources,
    status: ExitStatus,
    options: &RunOptions,
    written: u64,
) -> u8 {
    let ended_by = status.signal().and_then(|signal| u8::try_from(signal).ok());
    let exit_status = match (status.code(), ended_by) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => 128_u8.saturating_add(signal),
        (None, None) => 1,
    };
    let killed_by = ended_by.map(killed);
    if let Some(error) = &killed_by {
        // First of all, so that what is said next ends where it should.
        resources.terminal.iter().for_each(|terminal| terminal.restore());
        log::error!("{}", error.log_text());
        resources.spare = None;
        resources.write_last_statistics(options, exit_status, written);
    }
    // Else somebody would still listen there.
    drop(resources.acceptor.take());
    let consoles = [&options.console, &options.virtio_console].into_iter();
    let consoles = consoles.filter_map(|console| match console {
        ConsoleKind::Unix(path) => Some(path),
        _ => None,
    });
    let gdb = options.gdb.iter().filter_map(|gdb| match &gdb.address {
        GdbAddress::Unix(path) => Some(path),
        GdbAddress::Tcp(_) => None,
    });
    consoles.chain(&options.control).chain(gdb).for_each(|path| unix_listener::remove_stale(path));
    resources.write_report(options, exit_status, killed_by.as_ref());
    let Resources { programs, bound, .. } = resources;
    drop(programs);
    if let Some(mut bound) = bound.filter(|bound| !bound.is_empty()) {
        // Its driver on the host shall not find one that is still running.
        bound.keep(&signals::unheeded(|| assigned::stop_bound(options, ended_by.is_some())));
    }
    exit_status
}

/// What is said of a child that a signal has ended.
#[cold]
fn killed(signal: u8) -> Error {
    let name = signal_name(signal);
    let ended = format!("the guest's process was ended by signal {signal}{name}");
    match i32::from(signal) {
        libc::SIGSYS => Error::new(format!(
            "{ended}: it made a system call that its sandbox forbids, or a filter of the host's (of a container, say)"
        ))
        .help("dmesg | grep type=1326 shows the call and its thread where the host audits; --sandbox log makes all such calls"),
        libc::SIGKILL => Error::new(ended).help(
            "if nobody has sent it, the host was out of memory: dmesg | grep -i 'out of memory'",
        ),
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGABRT | libc::SIGFPE => Error::new(
            format!("{ended}. Unless somebody has sent it, this is a fault of strait, or of memory that the host took away"),
        ),
        _ => Error::new(ended),
    }
}

impl Resources {
    /// Writes the report of the run, if one is asked for.
    #[cold]
    fn write_report(&self, options: &RunOptions, exit_status: u8, killed_by: Option<&Error>) {
        let Some(report) = &self.report else { return };
        let message = killed_by.map(Error::log_text).unwrap_or_default();
        if let Err(error) = report.write(options, exit_status, (KILLED, &message)) {
            log::error!("{}", error.log_text());
        }
    }

    /// Writes the last statistics that the child has left, with its end.
    #[cold]
    fn write_last_statistics(&self, options: &RunOptions, exit_status: u8, written: u64) {
        let Some((statistics, path)) = self.statistics.as_ref().zip(options.stats.as_ref()) else {
            return;
        };
        let Some((_, text)) = statistics.newest(written.saturating_sub(1)) else { return };
        let text = stats::with_ending(&text, KILLED, exit_status);
        if let Err(error) = stats::write_file(path, &text) {
            log::error!("{}", error.log_text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_signal_means_is_said_with_its_number() {
        for (signal, part) in [
            (31, "signal 31 (SIGSYS): it made a system call that its sandbox"),
            (9, "signal 9 (SIGKILL)\n  help: if nobody"),
            (7, "signal 7 (SIGBUS). Unless"),
            (25, "ended by signal 25"),
        ] {
            let text = killed(signal).log_text();
            assert!(text.contains(part), "{text}");
        }
    }
}
