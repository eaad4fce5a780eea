//! `--vfio-pci BDF|fd=N[,OPTION…]` and `--vfio-user PATH[,OPTION…]`.

use std::path::PathBuf;
use std::str::FromStr;

use boot::help::Help;
use devices::pci::Bdf;
use devices::peer::Peer;
use devices::vfio::assign::{DeviceRef, VfToken};
use devices::vfio::pci::PciOptions;

use super::values::{device_ref, split, switch, take_each};

/// What is chosen for any PCI function of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionOptions {
    /// What is done with it.
    pub device: PciOptions,
    /// Its address on the guest's bus.
    pub address: Option<Bdf>,
}

/// A PCI function of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioPciOptions {
    /// Which one: what sysfs calls it (`0000:05:00.0`), without the domain if that is 0000, its path
    /// below sysfs, or a descriptor.
    pub which: DeviceRef,
    /// What VFIO is told before it opens a function with SR-IOV.
    pub vf_token: Option<VfToken>,
    /// What is chosen for it.
    pub function: FunctionOptions,
    /// It is in a hot-plug slot, from which the guest can eject it.
    pub hotplug: bool,
}

/// A PCI function of another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioUserOptions {
    /// The socket on which its server listens.
    pub path: PathBuf,
    /// What is chosen for it.
    pub function: FunctionOptions,
    /// Whose server it may be.
    pub peer: Peer,
}

impl FunctionOptions {
    /// The keys of its options, each of which is given once.
    const KEYS: [&str; 3] = ["addr", "mmap", "reset"];

    /// Takes one `KEY=VALUE`.
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "addr" => self.address = Some(address(value)?),
            "mmap" => self.device.mmap = switch(key, value)?,
            _ => self.device.reset = switch(key, value)?,
        }
        Ok(())
    }
}

impl FromStr for VfioPciOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, given) = split(text)?;
        let which = device_ref(device, "0000:05:00.0")?;
        let mut function = FunctionOptions::default();
        let (mut vf_token, mut hotplug) = (None, false);
        let keys = [FunctionOptions::KEYS.as_slice(), &["hotplug", "vf-token"]].concat();
        take_each(given, "a PCI device", &keys, &[], |key, value| match key {
            "hotplug" => switch(key, value).map(|on| hotplug = on),
            "vf-token" => value.parse().map(|token| vf_token = Some(token)),
            _ => function.take(key, value),
        })?;
        Ok(Self { which, vf_token, function, hotplug })
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
        let (path, function, peer) = (path.into(), FunctionOptions::default(), Peer::default());
        let mut options = Self { path, function, peer };
        let given = given.iter().filter_map(|part| part.split_once('='));
        let keys = [FunctionOptions::KEYS.as_slice(), &["peer"]].concat();
        take_each(given, "such a device", &keys, &[], |key, value| match key {
            "peer" => parse_peer(value).map(|peer| options.peer = peer),
            _ => options.function.take(key, value),
        })?;
        Ok(options)
    }
}

/// Whose servers are taken besides root's and this user's.
pub(super) fn parse_peer(value: &str) -> Result<Peer, String> {
    match value {
        "any" => Ok(Peer::Any),
        number => number.parse().map(Peer::User).map_err(|_| {
            format!("peer= takes the number of a user (id -u NAME tells it) or any, not `{value}`")
        }),
    }
}

/// Reads where a function is to be on the guest's bus.
fn address(text: &str) -> Result<Bdf, String> {
    text.parse::<Bdf>().map_err(|error| {
        let help = error.help().map(|help| format!("; addr is {help}")).unwrap_or_default();
        format!("{error}{help}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_name() {
        let parse = |text: &str| text.parse::<VfioPciOptions>().unwrap();
        assert_eq!(
            parse("05:00.0"),
            VfioPciOptions {
                which: "05:00.0".into(),
                vf_token: None,
                function: FunctionOptions::default(),
                hotplug: false,
            }
        );
        let token = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";
        let with_token = parse(&format!("05:00.0,vf-token={token},mmap=off"));
        assert_eq!(with_token.vf_token.unwrap().to_string(), token);
        assert!(!with_token.function.device.mmap);
        assert!(parse("05:00.0,hotplug=on").hotplug && !parse("05:00.0,hotplug=off").hotplug);
        let all = parse("0000:05:00.0,addr=1f.7,mmap=off,reset=off");
        assert_eq!(all.which, "0000:05:00.0".into());
        assert_eq!(all.function.address, Bdf::new(0, 31, 7));
        assert_eq!((all.function.device.mmap, all.function.device.reset), (false, false));
        let path = "/sys/devices/platform/1c00000.qcom,pcie/pci0000:00/0000:00:00.0";
        assert_eq!(parse(&format!("{path},mmap=off")).which, path.into());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            ",mmap=off",
            "x,",
            "x,,mmap=off",
            "x,mmap=maybe",
            "x,addr=",
            "x,addr=20.0",
            "x,addr=02",
            "x,reset=",
            "x,vf-token=",
            "x,vf-token=1",
            "x,hotplug=",
            "x,hotplug=on,hotplug=on",
            "x,colour=red",
            "x,mmap=off,mmap=on",
            "x,addr=1.0,reset=off,addr=1.0",
        ] {
            assert!(text.parse::<VfioPciOptions>().is_err(), "{text}");
        }
    }

    #[test]
    fn options_follow_the_path() {
        for (text, path, address) in [
            ("/run/a.sock", "/run/a.sock", None),
            ("a,b", "a,b", None),
            ("a,b,addr=03.1", "a,b", Bdf::new(0, 3, 1)),
            ("a=b,addr=1f.7", "a=b", Bdf::new(0, 31, 7)),
        ] {
            let options: VfioUserOptions = text.parse().unwrap();
            assert_eq!((options.path, options.function.address), (path.into(), address), "{text}");
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
        assert!(!function.device.mmap && !function.device.reset);
    }

    #[test]
    fn what_makes_no_sense_of_a_server_is_refused() {
        for text in [
            "",
            ",addr=1.0",
            "a,addr=",
            "a,hotplug=on",
            "a,addr=20.0",
            "a,mmap=",
            "a,addr=1.0,x=y",
            "a,addr=1.0,addr=2.0",
            "a,peer=",
            "a,peer=me",
            "a,peer=1,peer=2",
            "a,vf-token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3",
        ] {
            assert!(text.parse::<VfioUserOptions>().is_err(), "{text}");
        }
    }
}
