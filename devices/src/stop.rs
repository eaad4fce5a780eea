//! Whether strait is to end: what takes long is given up then, between two of its steps.
//!
//! That a person wants the end is known to the process as a whole, by its signals. Whoever catches
//! them says so here once, as a logger is said once; who takes long on the way to a running guest
//! (opens and resets devices, waits for servers, pins memory) asks.

use std::io;
use std::sync::OnceLock;

/// Tells whether a signal has arrived that ends strait.
type Look = fn() -> bool;

static LOOK: OnceLock<Look> = OnceLock::new();

/// Has this asked from here on. Nothing is ever given up before.
pub fn look_by(look: Look) {
    let _ = LOOK.set(look);
}

/// Whether strait is to end.
pub fn is_asked() -> bool {
    LOOK.get().is_some_and(|look| look())
}

/// Fails if strait is to end.
///
/// # Errors
///
/// It is. Whoever caught the signal knows the reason better than this error.
pub fn check() -> io::Result<()> {
    if is_asked() { Err(io::Error::other("a signal ends strait")) } else { Ok(()) }
}
