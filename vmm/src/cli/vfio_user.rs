//! `--vfio-user PATH[,OPTION…]`.

use std::path::PathBuf;
use std::str::FromStr;

use devices::pci::Bdf;
use devices::vfio::pci::PciOptions as FunctionOptions;
use devices::vfio_user::Peer;

use super::once::Once;
use super::pci;

/// A PCI device of another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioUserOptions {
    /// The socket on which its server listens.
    pub path: PathBuf,
    /// What is done with it.
    pub function: FunctionOptions,
    /// Where it is on the guest's bus.
    pub address: Option<Bdf>,
    /// Whose server it may be.
    pub peer: Peer,
}

/// Whose servers are taken besides root's and this user's.
fn peer(value: &str) -> Result<Peer, String> {
    match value {
        "any" => Ok(Peer::Any),
        number => number.parse().map(Peer::User).map_err(|_| {
            format!("peer= takes the number of a user (id -u NAME tells it) or any, not `{value}`")
        }),
    }
}

impl FromStr for VfioUserOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Of what is between commas, the options are at the end: a file's name may have commas.
        let parts: Vec<&str> = text.split(',').collect();
        let options = parts.iter().skip(1).rev().take_while(|part| part.contains('=')).count();
        let (path, given) = parts.split_at(parts.len().saturating_sub(options));
        let path = path.join(",");
        if path.is_empty() {
            return Err("the path of a server's socket comes first".into());
        }
        let function = FunctionOptions::default();
        let mut options =
            Self { path: path.into(), function, address: None, peer: Peer::default() };
        let mut once = Once::default();
        for (key, value) in given.iter().filter_map(|part| part.split_once('=')) {
            match key {
                "peer" => {
                    once.note("peer", value.as_ref())?;
                    options.peer = peer(value)?;
                }
                "addr" | "mmap" | "reset" => {
                    let VfioUserOptions { function, address, .. } = &mut options;
                    pci::take(function, address, &mut once, (key, value))?;
                }
                _ => {
                    return Err(format!(
                        "`{key}` is no option of such a device; addr, mmap, reset and peer are"
                    ));
                }
            }
        }
        Ok(options)
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
            ("a=b,addr=1f.7", "a=b", Bdf::new(0, 31, 7)),
        ] {
            let options: VfioUserOptions = text.parse().unwrap();
            assert_eq!((options.path, options.address), (path.into(), address), "{text}");
        }
        for (text, peer) in [
            ("a", Peer::Own),
            ("a,peer=any", Peer::Any),
            ("a,peer=1000,addr=2.0", Peer::User(1000)),
            ("a,peer=0", Peer::User(0)),
        ] {
            assert_eq!(text.parse::<VfioUserOptions>().unwrap().peer, peer, "{text}");
        }
        let function = "a,mmap=off,reset=off".parse::<VfioUserOptions>().unwrap().function;
        assert!(!function.mmap && !function.reset);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            ",addr=1.0",
            "a,addr=",
            "a,addr=20.0",
            "a,mmap=",
            "a,addr=1.0,x=y",
            "a,addr=1.0,addr=2.0",
            "a,peer=",
            "a,peer=me",
            "a,peer=1,peer=2",
        ] {
            assert!(text.parse::<VfioUserOptions>().is_err(), "{text}");
        }
    }
}
