//! Errors and what caused them, as a log or a report has them.

use std::error::Error;

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
