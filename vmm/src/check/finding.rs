//! What was found about one thing.

use serde::Serialize;

use crate::error::Error;

/// How good or bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Fine,
    /// An assignment works, with a drawback or for fewer devices.
    Degraded,
    /// No assignment works.
    Blocks,
}

impl Level {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Degraded => "degraded",
            Self::Blocks => "blocks",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// About what.
    pub subject: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What mends it.
    pub help: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn fine(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, level: Level::Fine, text: text.into(), help: None }
    }

    /// Works, with a drawback that `help` mends.
    pub fn degraded(
        subject: &'static str,
        text: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self { level: Level::Degraded, help: Some(help.into()), ..Self::fine(subject, text) }
    }

    /// Nothing works until `help` has mended it.
    pub fn blocks(subject: &'static str, text: impl Into<String>, help: impl Into<String>) -> Self {
        Self { level: Level::Blocks, help: Some(help.into()), ..Self::fine(subject, text) }
    }

    /// Nothing works, for this reason.
    pub fn error(subject: &'static str, error: Error) -> Self {
        let text = error.message().to_owned();
        Self { level: Level::Blocks, help: error.take_help(), ..Self::fine(subject, text) }
    }
}
