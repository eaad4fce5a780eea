//! How a run ends.

use crate::error::Error;

/// Why the guest no longer runs.
#[derive(Debug)]
pub enum Ending {
    /// It powered itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// It crashed.
    Crash,
    /// The time given by `--timeout` is over.
    Timeout,
    /// The person left with Ctrl-A x.
    Left,
    /// This signal ended strait.
    Signal(u8),
    /// Only the plan was asked for.
    Planned,
    /// strait can't go on.
    Failed(Error),
}

impl Ending {
    /// The exit status that says so.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Left | Self::Planned => 0,
            Self::Failed(_) => 1,
            Self::Reset => 3,
            Self::Crash => 4,
            Self::Timeout => 124,
            Self::Signal(number) => 128u8.saturating_add(*number),
        }
    }

    /// The name it has in statistics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::Crash => "crash",
            Self::Timeout => "timeout",
            Self::Left => "left",
            Self::Signal(_) => "signal",
            Self::Planned => "planned",
            Self::Failed(_) => "failed",
        }
    }
}
