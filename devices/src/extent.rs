//! Ranges as they are printed.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// A range of bytes: as JSON its start and its size, as text its first and its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Where it starts.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl From<&Range<u64>> for Extent {
    fn from(range: &Range<u64>) -> Self {
        Self { start: range.start, size: range.end.saturating_sub(range.start) }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, size } = self;
        match size.checked_sub(1) {
            Some(rest) => write!(f, "{start:#x}-{:#x}", start.saturating_add(rest)),
            None => write!(f, "{start:#x}, 0 bytes"),
        }
    }
}
