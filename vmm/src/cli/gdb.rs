//! `--gdb`.

use std::fmt::{self, Display, Formatter};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

/// The longest path of a socket, in bytes (unix(7): `sun_path` has 108 with the zero behind it).
const MAX_SOCKET_PATH: usize = 107;

/// Where GDB connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GdbAddress {
    /// A TCP port of this address; 0 is any that is free.
    Tcp(SocketAddrV4),
    /// A socket at this path.
    Unix(PathBuf),
}

/// As GDB's `target remote` takes it.
impl Display for GdbAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => {
                let [a, b, c, d] = address.ip().octets();
                write!(f, "{a}.{b}.{c}.{d}:{}", address.port())
            }
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The value of `--gdb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GdbOptions {
    /// Where it connects.
    pub address: GdbAddress,
    /// The guest doesn't run before it has.
    pub wait: bool,
}

/// Where, and whether the guest waits for it.
impl Display for GdbOptions {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { address, wait } = self;
        write!(f, "{address}{}", if *wait { ", the guest waits for it" } else { "" })
    }
}

/// Reads the option's value.
pub(super) fn gdb(text: &str) -> Result<GdbOptions, String> {
    const FORMS: &str = "tcp:PORT, tcp:ADDRESS:PORT or unix:PATH is needed, and ,wait may follow";
    let (place, wait) = match text.strip_suffix(",wait") {
        Some(place) => (place, true),
        None => (text, false),
    };
    let address = match place.split_once(':').ok_or(FORMS)? {
        ("unix", path) if path.len() > MAX_SOCKET_PATH => {
            return Err(format!(
                "a socket's path has at most {MAX_SOCKET_PATH} bytes, and this one {}",
                path.len()
            ));
        }
        ("unix", path) if !path.is_empty() => GdbAddress::Unix(PathBuf::from(path)),
        ("tcp", place) => GdbAddress::Tcp(tcp(place).ok_or(FORMS)?),
        _ => return Err(FORMS.into()),
    };
    Ok(GdbOptions { address, wait })
}

/// A port of this machine alone, or with an IPv4 address before it.
fn tcp(place: &str) -> Option<SocketAddrV4> {
    let (host, port) = place.rsplit_once(':').unwrap_or(("localhost", place));
    let mut address = Ipv4Addr::LOCALHOST;
    if host != "localhost" {
        // The standard library's parser brings IPv6 with it.
        let mut bytes = host.split('.').map(|byte| byte.parse().ok());
        let mut next = || bytes.next().flatten();
        address = [next()?, next()?, next()?, next()?].into();
        if bytes.next().is_some() {
            return None;
        }
    }
    Some(SocketAddrV4::new(address, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_this_machine_s() {
        for (text, address, wait) in [
            ("tcp:1234", "127.0.0.1:1234", false),
            ("tcp:localhost:1234,wait", "127.0.0.1:1234", true),
            ("tcp:0.0.0.0:0", "0.0.0.0:0", false),
            ("tcp:192.0.2.1:1234,wait", "192.0.2.1:1234", true),
            ("unix:/run/gdb", "/run/gdb", false),
            ("unix:gdb,1,wait", "gdb,1", true),
        ] {
            let options = gdb(text).unwrap();
            assert_eq!((options.address.to_string().as_str(), options.wait), (address, wait));
        }
        let long = format!("unix:{}", "x".repeat(MAX_SOCKET_PATH + 1));
        for text in [
            "",
            "tcp",
            "tcp:",
            "unix:",
            "unix:,wait",
            "1234",
            "tcp:x",
            "tcp:65536",
            "tcp:::1:1",
            "tcp:host:1",
            "tcp:[::1]:1",
            "tcp:1.2.3:1",
            "tcp:1.2.3.4.5:1",
            "tcp:1.2.3.256:1",
            "tcp:1,now",
            &long,
        ] {
            assert!(gdb(text).is_err(), "{text}");
        }
    }
}
