//! `--firmware FILE[,vars=FILE]`.

use std::ffi::OsString;
use std::path::PathBuf;

/// The firmware of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareOptions {
    /// Its file.
    pub path: PathBuf,
    /// The file that its variables are kept in.
    pub variables: Option<PathBuf>,
}

impl FirmwareOptions {
    /// Reads the option's value. Other commas belong to the files' names.
    pub(super) fn read(value: OsString) -> Result<Self, String> {
        let parts = value.to_str().and_then(|text| text.split_once(",vars="));
        let Some((path, variables)) = parts else {
            return Ok(Self { path: value.into(), variables: None });
        };
        if variables.is_empty() {
            return Err("vars=: a file's name is needed".to_owned());
        }
        Ok(Self { path: path.into(), variables: Some(variables.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_file_of_their_own() {
        let read = |text: &str| FirmwareOptions::read(text.into());
        for (text, path, variables) in [
            ("u-boot.bin", "u-boot.bin", None),
            ("a,b", "a,b", None),
            ("a,b,vars=c,d", "a,b", Some("c,d")),
        ] {
            let variables = variables.map(PathBuf::from);
            assert_eq!(read(text).unwrap(), FirmwareOptions { path: path.into(), variables });
        }
        assert!(read("u-boot.bin,vars=").is_err());
    }
}
