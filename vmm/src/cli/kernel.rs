//! `--kernel FILE[,at=0x…]`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::values::address;

/// The kernel of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelOptions {
    /// Its file.
    pub path: PathBuf,
    /// Where it is loaded and entered (GPA), if it is a raw binary.
    pub at: Option<u64>,
}

impl KernelOptions {
    /// Reads the option's value. Other commas belong to the file's name.
    pub(super) fn read(value: OsString) -> Result<Self, String> {
        let parts = value.to_str().and_then(|text| text.rsplit_once(",at="));
        let Some((path, at)) = parts else { return Ok(Self { path: value.into(), at: None }) };
        let at = address("at", at)?;
        // Instructions are words (Arm ARM, D1.3.7 "PC alignment checking").
        if !at.is_multiple_of(4) {
            return Err(format!("at={at:#x}: a binary is entered at a multiple of 4"));
        }
        Ok(Self { path: path.into(), at: Some(at) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_binary_has_an_address() {
        let read = |text: &str| KernelOptions::read(text.into());
        for (text, path, at) in [
            ("Image", "Image", None),
            ("a,b,at.elf", "a,b,at.elf", None),
            ("app.bin,at=0x40080000", "app.bin", Some(0x4008_0000)),
            ("a,at=0x0,at=0x4008_0000", "a,at=0x0", Some(0x4008_0000)),
        ] {
            assert_eq!(read(text).unwrap(), KernelOptions { path: path.into(), at });
        }
        for text in ["app.bin,at=", "app.bin,at=40080000", "app.bin,at=0x", "app.bin,at=0x4008002"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
