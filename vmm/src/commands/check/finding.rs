//! What was found about one thing.

use serde::Serialize;

use super::kind::Kind;
use crate::error::Error;

/// How good or bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Fine,
    /// An assignment works, with a drawback or not for all devices.
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
    /// The kinds of device of which none can be assigned until it is mended.
    pub blocks: Vec<Kind>,
}

impl Finding {
    /// As it should be.
    pub fn fine(subject: &'static str, text: impl Into<String>) -> Self {
        let (level, help, blocks) = (Level::Fine, None, Vec::new());
        Self { subject, level, text: text.into(), help, blocks }
    }

    /// Works, with a drawback that `help` mends.
    pub fn degraded(
        subject: &'static str,
        text: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self { level: Level::Degraded, help: Some(help.into()), ..Self::fine(subject, text) }
    }

    /// No device of these kinds can be assigned until `help` has mended it.
    pub fn blocks(
        subject: &'static str,
        kinds: &[Kind],
        text: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let help = Some(help.into());
        let level = Level::Blocks;
        Self { level, help, blocks: kinds.to_vec(), ..Self::fine(subject, text) }
    }

    /// No device of these kinds can be assigned, for this reason.
    pub fn error(subject: &'static str, kinds: &[Kind], error: Error) -> Self {
        let text = error.message().to_owned();
        let (level, help) = (Level::Blocks, error.take_help());
        Self { level, help, blocks: kinds.to_vec(), ..Self::fine(subject, text) }
    }
}
