//! What a person can do about an error.

use std::error::Error;

/// An error that may know what mends it.
pub trait Help: Error {
    /// What mends it, in lines: commands to type, options to give. `None` where that isn't known.
    fn help(&self) -> Option<String> {
        None
    }
}

impl Help for std::io::Error {}
