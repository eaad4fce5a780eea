//! What can be wrong with an overlay.

use crate::help::Help;
use thiserror::Error;

use crate::fdt::ReadError;

/// An overlay that can't be read or applied.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the device tree overlay {name} can't be {}: {fault}", fault.step())]
pub struct OverlayError {
    /// The file.
    pub name: String,
    /// What is wrong with it.
    pub fault: OverlayFault,
}

/// What can be wrong with an overlay.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum OverlayFault {
    #[error("{0}")]
    Blob(#[from] ReadError),
    #[error("it has no fragment: no node with a target and a node named __overlay__")]
    NoFragment,
    #[error("{fragment} says neither by target nor by target-path what it changes")]
    NoTarget { fragment: String },
    #[error("it has more than {limit} {what}")]
    TooMany { what: &'static str, limit: usize },
    #[error("its fixup {place} is invalid")]
    Fixup { place: String },
    #[error("{place} refers to the phandle {phandle:#x}, which none of its nodes has")]
    NoPhandle { place: String, phandle: u32 },
    #[error("it refers to &{symbol}, which the guest's device tree doesn't have")]
    NoSymbol { symbol: String, known: Vec<String> },
    #[error("the guest's device tree has no node {path}")]
    NoPath { path: String },
    #[error("&{symbol} is a node outside of its fragments")]
    Outside { symbol: String },
}

impl OverlayFault {
    pub(super) fn of(self, name: &str) -> OverlayError {
        OverlayError { name: name.to_owned(), fault: self }
    }

    fn step(&self) -> &'static str {
        match self {
            Self::NoSymbol { .. } | Self::NoPath { .. } | Self::Outside { .. } => "applied",
            _ => "read",
        }
    }
}

impl Help for OverlayError {
    fn help(&self) -> Option<String> {
        match &self.fault {
            OverlayFault::Blob(ReadError::Magic) => Some(format!(
                "compile its source: dtc -@ -I dts -O dtb -o overlay.dtbo {}",
                self.name
            )),
            OverlayFault::NoFragment | OverlayFault::NoTarget { .. } => Some(
                "an overlay's source begins with /dts-v1/; /plugin/; and changes &symbol { … } or \
                 &{/path} { … }"
                    .to_owned(),
            ),
            OverlayFault::NoSymbol { known, .. } => {
                Some(format!("it has these: {}", known.join(" ")))
            }
            OverlayFault::NoPath { .. } => {
                Some("strait run --dry-run shows the guest's device tree".to_owned())
            }
            _ => None,
        }
    }
}
