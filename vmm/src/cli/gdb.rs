//! `--gdb`.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The longest path of a socket, in bytes (unix(7): `sun_path` has 108 with the zero behind it).
const MAX_SOCKET_PATH: usize = 107;

/// Where GDB connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GdbAddress {
    /// A TCP port of this address; 0 is any that is free.
    Tcp(SocketAddr),
    /// A socket at this path.
    Unix(PathBuf),
}

/// As GDB's `target remote` takes it.
impl Display for GdbAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
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

/// A port of this machine alone, or with an address before it.
fn tcp(place: &str) -> Option<SocketAddr> {
    let Some((host, port)) = place.rsplit_once(':') else {
        return Some((Ipv4Addr::LOCALHOST, place.parse().ok()?).into());
    };
    let host = match host {
        "localhost" => IpAddr::from(Ipv4Addr::LOCALHOST),
        _ => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => IpAddr::V6(inner.parse().ok()?),
            None => IpAddr::V4(host.parse().ok()?),
        },
    };
    Some((host, port.parse().ok()?).into())
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
            ("tcp:[::1]:1234,wait", "[::1]:1234", true),
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
            "tcp:1,now",
            &long,
        ] {
            assert!(gdb(text).is_err(), "{text}");
        }
    }
}
