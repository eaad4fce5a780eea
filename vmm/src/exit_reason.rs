//! Why a run ended.

use std::time::Duration;

use crate::error::Error;

/// Why the guest no longer runs.
#[derive(Debug)]
pub enum ExitReason {
    /// It powered itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// It crashed.
    Crash,
    /// The time given by `--timeout` is over.
    Timeout(Duration),
    /// A console printed this, which `--until` waited for.
    Until(String),
    /// A console printed a line with this pattern of `--fail-on`.
    FailOn {
        /// The pattern.
        pattern: String,
        /// The line.
        line: String,
    },
    /// The guest powered itself off before a console printed what `--until` waits for.
    NotFound(String),
    /// Ctrl-A x was typed.
    Quit,
    /// This signal ended strait.
    Signal(u8),
    /// Only the plan was asked for.
    DryRun,
    /// strait can't go on.
    Failed(Error),
}

impl ExitReason {
    /// The exit status that says so.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Until(_) | Self::Quit | Self::DryRun => 0,
            Self::Failed(_) => 1,
            Self::Reset => 3,
            Self::Crash => 4,
            Self::FailOn { .. } | Self::NotFound(_) => 5,
            Self::Timeout(_) => 124,
            Self::Signal(number) => 128u8.saturating_add(*number),
        }
    }

    /// Whether the guest ended it itself: its last output may take its time then.
    pub fn is_by_guest(&self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset | Self::Crash | Self::NotFound(_))
    }

    /// The name it has in statistics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::Crash => "crash",
            Self::Timeout(_) => "timeout",
            Self::Until(_) => "until",
            Self::FailOn { .. } => "fail-on",
            Self::NotFound(_) => "not-found",
            Self::Quit => "left",
            Self::Signal(_) => "signal",
            Self::DryRun => "planned",
            Self::Failed(_) => "failed",
        }
    }

    /// The message for standard error; none for a power-off that nothing more was expected of.
    pub fn message(&self) -> Option<String> {
        Some(match self {
            Self::PowerOff | Self::Quit | Self::DryRun | Self::Failed(_) => return None,
            Self::Reset => "the guest asked for a reset".to_owned(),
            Self::Crash => "the guest crashed".to_owned(),
            Self::Timeout(after) => format!("the guest still ran after {} s", after.as_secs_f64()),
            Self::Until(pattern) => format!("the guest's console has `{pattern}` (--until)"),
            Self::FailOn { pattern, line } => {
                format!("the guest's console has `{pattern}` (--fail-on): {line}")
            }
            Self::NotFound(patterns) => {
                format!("the guest powered off, and its console never had `{patterns}` (--until)")
            }
            Self::Signal(number) => format!("ended by signal {number}{}", signal_name(*number)),
        })
    }
}

/// The name of a signal that people send, or that faults end in, in parentheses.
pub fn signal_name(number: u8) -> &'static str {
    match i32::from(number) {
        libc::SIGKILL => " (SIGKILL)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGSYS => " (SIGSYS)",
        libc::SIGHUP => " (SIGHUP)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGQUIT => " (SIGQUIT)",
        libc::SIGTERM => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_with_another_status_than_0_has_a_message() {
        for (reason, text) in [
            (ExitReason::Reset, "the guest asked for a reset"),
            (ExitReason::Crash, "the guest crashed"),
            (ExitReason::Timeout(Duration::from_secs(8)), "the guest still ran after 8 s"),
            (ExitReason::Timeout(Duration::from_millis(1500)), "the guest still ran after 1.5 s"),
            (
                ExitReason::FailOn { pattern: "/pan.c/".into(), line: "a panic".into() },
                "the guest's console has `/pan.c/` (--fail-on): a panic",
            ),
            (
                ExitReason::NotFound("a`, `b".into()),
                "the guest powered off, and its console never had `a`, `b` (--until)",
            ),
            (ExitReason::Signal(15), "ended by signal 15 (SIGTERM)"),
            (ExitReason::Signal(34), "ended by signal 34"),
        ] {
            assert_eq!(reason.message().as_deref(), Some(text));
            assert_ne!(reason.exit_status(), 0);
        }
        for reason in [ExitReason::PowerOff, ExitReason::Quit, ExitReason::DryRun] {
            assert_eq!((reason.message(), reason.exit_status()), (None, 0));
        }
        let found = ExitReason::Until("login:".into());
        assert_eq!(found.exit_status(), 0);
        assert_eq!(found.message().unwrap(), "the guest's console has `login:` (--until)");
    }
}
