//! `--vfio-platform NAME[,OPTION…]`.

use std::str::FromStr;

/// A platform device to assign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformOptions {
    /// What sysfs calls it, or its path below sysfs.
    pub name: String,
    /// Whether strait stops the device's activity before and after the guest.
    pub quiesce: bool,
}

impl FromStr for PlatformOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            return Err("a device's name comes first, such as 2c0a0000.dma".into());
        }
        let mut options = Self { name: name.to_owned(), quiesce: true };
        for part in parts {
            match part.split_once('=') {
                Some(("quiesce", "on")) => options.quiesce = true,
                Some(("quiesce", "off")) => options.quiesce = false,
                Some(("quiesce", _)) => return Err("quiesce is on or off".into()),
                _ => return Err(format!("`{part}` is no option of a device; quiesce=off is")),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_has_the_defaults() {
        let expected = PlatformOptions { name: "2c0a0000.dma".into(), quiesce: true };
        assert_eq!("2c0a0000.dma".parse(), Ok(expected));
    }

    #[test]
    fn options_follow_the_name() {
        assert!(!"x,quiesce=off".parse::<PlatformOptions>().unwrap().quiesce);
        assert!("x,quiesce=off,quiesce=on".parse::<PlatformOptions>().unwrap().quiesce);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", ",quiesce=off", "x,", "x,quiesce", "x,quiesce=maybe", "x,colour=red"] {
            assert!(text.parse::<PlatformOptions>().is_err(), "{text}");
        }
    }
}
