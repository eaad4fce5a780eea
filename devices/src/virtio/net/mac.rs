//! Ethernet addresses of guests' network devices.

use std::ffi::CStr;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::str::FromStr;

/// An address of one station (IEEE 802: not of a group).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// The bit of the first byte that makes an address one of a group.
const GROUP: u8 = 1;
/// The bit of the first byte that makes an address locally administered.
const LOCAL: u8 = 2;

impl MacAddress {
    /// Its bytes, in the order in which they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// A locally administered address for the guest behind the tap called `tap`: always the same on
    /// one host, and another on each host. It is made by SipHash-2-4 from the tap's name, with the
    /// host's machine ID as the key, which doesn't become known by it (machine-id(5)).
    pub fn of_tap(tap: &str) -> Self {
        let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        match u128::from_str_radix(id.trim(), 16) {
            Ok(key) => Self::derived(key, tap, None),
            // Without a machine ID its name tells the host from others.
            Err(_) => Self::derived(0, tap, host_name().as_deref()),
        }
    }

    #[expect(
        deprecated,
        reason = "DefaultHasher may become another function; SipHasher is SipHash-2-4"
    )]
    fn derived(key: u128, tap: &str, host: Option<&str>) -> Self {
        use std::hash::{Hasher, SipHasher};

        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
        let (low, high) = (half(key), half(key >> 64));
        let mut hasher = SipHasher::new_with_keys(low, high);
        for part in ["strait network", tap, host.unwrap_or_default()] {
            hasher.write(part.as_bytes());
            hasher.write(&[0]);
        }
        let [first, b, c, d, e, f, ..] = hasher.finish().to_be_bytes();
        Self([first & !GROUP | LOCAL, b, c, d, e, f])
    }
}

/// The host's name.
fn host_name() -> Option<String> {
    // SAFETY: all zeroes is a valid utsname, which the call fills in.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is writable for the time of the call.
    if unsafe { libc::uname(&raw mut names) } != 0 {
        return None;
    }
    let name: Vec<u8> = names.nodename.iter().map(|c| c.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&name).ok().map(|name| name.to_string_lossy().into_owned())
}

impl Display for MacAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let byte = |part: &str| {
            let is_hex = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            u8::from_str_radix(part, 16).ok().filter(|_| is_hex)
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).ok_or_else(|| {
            format!("`{text}` is no Ethernet address, which is six bytes such as 02:00:00:00:00:01")
        })?;
        if bytes[0] & GROUP != 0 {
            return Err(format!(
                "{text} is the address of a group; a station's first byte is even, such as \
                 02:00:00:00:00:01"
            ));
        }
        if bytes == [0; 6] {
            return Err(format!("{text} is no station's address; 02:00:00:00:00:01 is"));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_six_bytes_of_one_station() {
        let address: MacAddress = "02:Ab:00:00:00:fF".parse().unwrap();
        assert_eq!(address.bytes(), [2, 0xab, 0, 0, 0, 0xff]);
        assert_eq!(address.to_string(), "02:ab:00:00:00:ff");
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "02-00-00-00-00-01",
            "02:00:00:00:00:+1",
            "02:00:00:00:00:0g",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_derived_address_is_always_the_same_and_another_for_each_tap_and_host() {
        let of = |key, tap| MacAddress::derived(key, tap, None).bytes();
        // Computed apart from this: another function would give guests other addresses.
        assert_eq!(of(1, "tap0"), [0x8a, 0x3a, 0x59, 0x35, 0xd2, 0x06]);
        let others = [of(1, "tap1"), of(2, "tap0"), of(1 << 64, "tap0"), of(1, "tap01")];
        assert!(others.iter().all(|other| *other != of(1, "tap0")));
        assert_ne!(MacAddress::derived(1, "tap0", Some("b")).bytes(), of(1, "tap0"));
        for bytes in others {
            assert_eq!(bytes[0] & (GROUP | LOCAL), LOCAL);
        }
        assert_eq!(MacAddress::of_tap("tap0"), MacAddress::of_tap("tap0"));
        assert!(host_name().is_some_and(|name| !name.is_empty()));
    }
}
