//! `--net tap=NAME|fd=N[,OPTION…]` and `--vsock cid=N`.

use std::str::FromStr;

use devices::virtio::net::{MacAddress, TapRef, VhostChoice};
use devices::virtio::vsock::FIRST_CID;

use super::values::{descriptor, switch, take_each};

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// The tap that its packets go to and come from.
    pub tap: TapRef,
    /// Its address, if it isn't derived from the tap's name.
    pub mac: Option<MacAddress>,
    /// Who works on its queues.
    pub vhost: VhostChoice,
}

impl FromStr for NetOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut tap, mut mac, mut vhost) = (None, None, VhostChoice::Auto);
        let pairs: Option<Vec<_>> = text.split(',').map(|part| part.split_once('=')).collect();
        let given = pairs.ok_or("tap=NAME or fd=N is needed, as in tap=tap0,vhost=off")?;
        take_each(given, "a network", &["tap", "fd", "mac", "vhost"], &[], |key, value| {
            match key {
                "tap" | "fd" if tap.is_some() => {
                    return Err("tap= and fd= exclude each other".into());
                }
                "tap" => tap = Some(TapRef::Name(interface(value)?)),
                "fd" => tap = Some(TapRef::Descriptor(descriptor(value)?)),
                "mac" => mac = Some(value.parse()?),
                _ if value == "auto" => vhost = VhostChoice::Auto,
                _ if switch(key, value)? => vhost = VhostChoice::On,
                _ => vhost = VhostChoice::Off,
            }
            Ok(())
        })?;
        let tap = tap.ok_or("tap=NAME or fd=N is needed")?;
        Ok(Self { tap, mac, vhost })
    }
}

/// The name of a network interface (the kernel's `dev_valid_name`; `%` is the kernel's own).
fn interface(name: &str) -> Result<String, String> {
    let is_odd = |c: char| c.is_whitespace() || c == '/' || c == ':' || c == '%' || c == '\0';
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(is_odd) {
        return Err(format!("`{name}` can't be a network interface's name; tap0 can"));
    }
    Ok(name.to_owned())
}

/// Reads `cid=N`.
pub(super) fn vsock(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("cid=").and_then(|number| number.parse().ok());
    let is_guest = |cid: &u64| (FIRST_CID..u64::from(u32::MAX)).contains(cid);
    number.filter(is_guest).ok_or_else(|| {
        format!("cid=N is needed, with the guest's address: {FIRST_CID} to {}", u32::MAX - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_a_tap_with_options() {
        let parse = |text: &str| text.parse::<NetOptions>().unwrap();
        let tap = TapRef::Name("tap0".into());
        let plain = NetOptions { tap, mac: None, vhost: VhostChoice::Auto };
        assert_eq!(parse("tap=tap0"), plain);
        assert_eq!(parse("tap=tap0,vhost=auto"), plain);
        let all = parse("vhost=on,mac=02:00:00:00:00:01,fd=0");
        assert_eq!((&all.tap, all.vhost), (&TapRef::Descriptor(0), VhostChoice::On));
        assert_eq!(all.mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert_eq!(parse("tap=tap0,vhost=off").vhost, VhostChoice::Off);
        for text in [
            "",
            "tap0",
            "tap=",
            "tap=a/b",
            "tap=a b",
            "tap=tap%d",
            "tap=sixteencharacters",
            "tap=..",
            "tap=tap0,",
            "tap=tap0,fd=0",
            "tap=tap0,tap=tap1",
            "fd=x",
            "fd=1048576",
            "mac=02:00:00:00:00:01",
            "tap=tap0,mac=01:00:00:00:00:01",
            "tap=tap0,mac=",
            "tap=tap0,vhost=maybe",
            "tap=tap0,queues=2",
        ] {
            assert!(text.parse::<NetOptions>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_of_sockets_is_a_guest_s() {
        assert_eq!(vsock("cid=3"), Ok(3));
        assert_eq!(vsock("cid=4294967294"), Ok(4_294_967_294));
        for text in
            ["", "3", "cid=", "cid=2", "cid=-1", "cid=4294967295", "cid=4294967296", "cid=0x3"]
        {
            assert!(vsock(text).is_err(), "{text}");
        }
    }
}
