//! Inputs that are kept: a line of hexadecimal digits each, behind comments.
//!
//! `corpora/NAME.hex` is what `cargo model fuzz NAME --keep` wrote: the smallest inputs that reach what
//! all reach together. `regressions/NAME.hex` has inputs that once failed, with comments that say how.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The most bytes of a corpus that is kept.
pub const KEPT_SIZE: usize = 4096;

/// The directory of the inputs that are kept for what they reach.
pub fn directory() -> PathBuf {
    files("corpora")
}

fn files(kind: &str) -> PathBuf {
    // Cargo doesn't build anew what was moved with its clone, but says where it runs it.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    // Of this package, or of the tool that has this module, too.
    let package = if package.ends_with("fuzz") { package } else { package.join("fuzz") };
    package.join(kind)
}

/// The names of all targets: each has such a file.
///
/// # Errors
///
/// The directory can't be read.
pub fn targets() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".hex").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The file of the inputs that are kept for what they reach.
pub fn path(target: &str) -> PathBuf {
    directory().join(format!("{target}.hex"))
}

/// The file of the inputs that once failed.
pub fn regressions(target: &str) -> PathBuf {
    files("regressions").join(format!("{target}.hex"))
}

/// The kept inputs of a target; none if it has no file yet.
///
/// # Errors
///
/// A file can't be read, or a line isn't hexadecimal (`InvalidData`).
pub fn read(target: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut inputs = of_file(&path(target))?;
    inputs.extend(of_file(&regressions(target))?);
    Ok(inputs)
}

/// The inputs that a file has; none if it isn't there.
///
/// # Errors
///
/// It can't be read, or a line isn't hexadecimal (`InvalidData`).
pub fn of_file(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, path.display().to_string());
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| decode(line).ok_or_else(wrong)).collect()
}

fn decode(line: &str) -> Option<Vec<u8>> {
    let digits = line.trim().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(byte).collect()).flatten()
}

/// An input as a line.
pub fn encode(input: &[u8]) -> String {
    input.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_input() {
        assert_eq!(decode(&encode(&[0, 0x7f, 0xff])).unwrap(), [0, 0x7f, 0xff]);
        assert_eq!((decode("0"), decode("0g"), decode("")), (None, None, Some(Vec::new())));
    }
}
