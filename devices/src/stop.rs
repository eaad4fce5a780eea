//! The stop request: whether a signal has asked the process to end.
//!
//! What takes long before a guest runs (opening and resetting devices, waiting for servers, pinning
//! memory) checks it between two steps and gives up.

use std::io;
use std::sync::OnceLock;

static SOURCE: OnceLock<fn() -> bool> = OnceLock::new();

/// Sets the function that tells whether a terminating signal is pending; once. Without one nothing
/// is ever requested.
pub fn set_source(is_pending: fn() -> bool) {
    let _ = SOURCE.set(is_pending);
}

/// Whether the process was asked to end.
pub fn is_requested() -> bool {
    SOURCE.get().is_some_and(|is_pending| is_pending())
}

/// Fails if the process was asked to end.
///
/// # Errors
///
/// It was. The signal handler knows the reason better than this error.
pub fn check() -> io::Result<()> {
    if is_requested() { Err(io::Error::other("a signal ends strait")) } else { Ok(()) }
}
