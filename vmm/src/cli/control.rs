//! `--control`, and `--register`.

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

/// A machine's name, as systemd-machined takes it (`hostname_is_valid` of systemd).
pub(super) fn machine_name(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.len() <= 64 && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err("a name is letters, digits, hyphens and dots, as in a host's, and 64 of them at most"
        .into())
}
