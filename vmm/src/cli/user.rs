//! `--vfio-user PATH[,OPTION…]`.

use std::path::PathBuf;
use std::str::FromStr;

use devices::pci::Bdf;

/// A PCI device of another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserOptions {
    /// The socket on which its server listens.
    pub path: PathBuf,
    /// Where it is on the guest's bus.
    pub address: Option<Bdf>,
}

impl FromStr for UserOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut path, mut address) = (text, None);
        // From the end, since a file's name may have commas.
        while let Some((before, (key, value))) =
            path.rsplit_once(',').and_then(|(before, last)| Some((before, last.split_once('=')?)))
        {
            if key != "addr" {
                return Err(format!("`{key}` is no option of such a device; addr is"));
            }
            let parsed = value.parse::<Bdf>().map_err(|error| {
                let help = error.help().unwrap_or_default();
                format!("{error}; addr is {help}")
            });
            // The last of several counts.
            address = address.or(Some(parsed?));
            path = before;
        }
        if path.is_empty() {
            return Err("the path of a server's socket comes first".into());
        }
        Ok(Self { path: path.into(), address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_path() {
        for (text, path, address) in [
            ("/run/a.sock", "/run/a.sock", None),
            ("a,b", "a,b", None),
            ("a,b,addr=03.1", "a,b", Bdf::new(0, 3, 1)),
            ("a=b,addr=1f.7,addr=2.0", "a=b", Bdf::new(0, 2, 0)),
        ] {
            assert_eq!(text.parse(), Ok(UserOptions { path: path.into(), address }), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", ",addr=1.0", "a,addr=", "a,addr=20.0", "a,mmap=off", "a,addr=1.0,x=y"] {
            assert!(text.parse::<UserOptions>().is_err(), "{text}");
        }
    }
}
