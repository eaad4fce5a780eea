//! Writing sysfs attributes; a trait, so that what changes drivers is tested without a kernel.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// Writes attributes.
pub trait Attributes {
    /// Writes `value` to the attribute at `path` by one system call, as sysfs wants it.
    ///
    /// # Errors
    ///
    /// As from `open(2)` and `write(2)`; what the driver core or a driver refuses with.
    fn write(&self, path: &Path, value: &str) -> io::Result<()>;
}

/// The kernel's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sysfs;

impl Attributes for Sysfs {
    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
    }
}
