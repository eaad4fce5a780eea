//! `--control`.

use std::path::PathBuf;

use super::console::{ConsoleKind, console};

/// Reads the option's value: the path of a socket.
pub(super) fn control(text: &str) -> Result<PathBuf, String> {
    match console(text) {
        Ok(ConsoleKind::Unix(path)) => Ok(path),
        Err(why) if text.starts_with("unix:") => Err(why),
        _ => Err("unix:PATH is needed".to_owned()),
    }
}
