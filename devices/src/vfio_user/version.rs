//! Negotiation of version and capabilities ("VFIO_USER_VERSION" in the specification).

use std::fmt;

use serde::Deserialize;

use super::message::{MAX_DATA, MAX_FDS, Payload, Reader};

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Versions of another major number are incompatible.
    pub major: u16,
    /// Grows as messages are added.
    pub minor: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The version that this client speaks.
pub(super) const SUPPORTED: Version = Version { major: 0, minor: 1 };

/// The most that a server's reply may take, in bytes.
pub(super) const MAX_REPLY: usize = 4096;

/// What was agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Negotiated {
    pub(super) version: Version,
    /// The most descriptors that the server takes with a message.
    pub(super) max_fds: usize,
    /// The most data that a message may carry, for both sides, in bytes.
    pub(super) max_data: usize,
    /// Which of the reply's descriptors is the server's connection for its own requests
    /// (`twin_socket`), if there is one.
    pub(super) twin: Option<usize>,
}

/// The version data of a reply; what it leaves out has the specification's default.
#[derive(Default, Deserialize)]
#[serde(default)]
struct VersionData {
    capabilities: Capabilities,
}

#[derive(Deserialize)]
#[serde(default)]
struct Capabilities {
    max_msg_fds: usize,
    max_data_xfer_size: usize,
    twin_socket: TwinSocket,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { max_msg_fds: 1, max_data_xfer_size: 1 << 20, twin_socket: TwinSocket::default() }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TwinSocket {
    supported: bool,
    fd_index: Option<usize>,
}

/// The payload of this client's request.
///
/// With `twin_socket` a server sends its own requests on a connection of their own. On one for both
/// sides, libvfio-user takes whatever comes for the reply it waits for (`lib/tran.c`,
/// `lib/tran_sock.c`; the specification doesn't have it).
pub(super) fn request() -> Payload {
    let json = format!(
        "{{\"capabilities\":{{\"max_msg_fds\":{MAX_FDS},\"max_data_xfer_size\":{MAX_DATA},\
         \"twin_socket\":{{\"supported\":true}}}}}}"
    );
    Payload::default()
        .bytes(&SUPPORTED.major.to_ne_bytes())
        .bytes(&SUPPORTED.minor.to_ne_bytes())
        .bytes(json.as_bytes())
        .bytes(&[0])
}

/// Reads the payload of the server's reply; the error says what in it is invalid.
pub(super) fn parse_reply(payload: &[u8]) -> Result<Negotiated, String> {
    let mut reader = Reader(payload);
    let version = reader.u16().zip(reader.u16());
    let (major, minor) = version.ok_or("a reply without a version")?;
    let data = reader.0;
    // It ends with a zero, which some leave out; and so may all of it be.
    let text = data.strip_suffix(&[0]).unwrap_or(data);
    let text = if data.is_empty() { b"{}" } else { text };
    // What is wrong with it would quote the server.
    let VersionData { capabilities } =
        serde_json::from_slice(text).map_err(|_| "invalid version data (JSON)")?;
    let max_data = capabilities.max_data_xfer_size.min(MAX_DATA);
    if max_data < 8 {
        return Err(format!("a max_data_xfer_size of {max_data}, less than a register takes"));
    }
    let TwinSocket { supported, fd_index } = capabilities.twin_socket;
    Ok(Negotiated {
        version: Version { major, minor },
        max_fds: capabilities.max_msg_fds.clamp(1, MAX_FDS),
        max_data,
        twin: supported.then(|| fd_index.unwrap_or(usize::MAX)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(major: u16, minor: u16, data: &[u8]) -> Vec<u8> {
        [&major.to_ne_bytes(), &minor.to_ne_bytes(), data].concat()
    }

    #[test]
    fn the_request_s_data_can_be_parsed() {
        let negotiated = parse_reply(&request().0).unwrap();
        let (version, twin) = (SUPPORTED, Some(usize::MAX));
        let expected = Negotiated { version, max_fds: MAX_FDS, max_data: MAX_DATA, twin };
        assert_eq!(negotiated, expected);
    }

    #[test]
    fn twin_socket_has_an_index() {
        // The first is libvfio-user's answer.
        let cases = [
            (
                r#"{ "capabilities": { "max_msg_fds": 8, "max_data_xfer_size": 1048576,
                   "twin_socket": { "supported": true, "fd_index": 0 } } }"#,
                Some(0),
            ),
            (r#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":3}}}"#, Some(3)),
            (r#"{"capabilities":{"twin_socket":{"supported":false,"fd_index":0}}}"#, None),
            (r#"{"capabilities":{"twin_socket":{"fd_index":0}}}"#, None),
            (r#"{"twin_socket":{"supported":true,"fd_index":0}}"#, None),
        ];
        for (text, twin) in cases {
            assert_eq!(parse_reply(&bytes(0, 1, text.as_bytes())).unwrap().twin, twin, "{text}");
        }
    }

    #[test]
    fn missing_capabilities_have_defaults() {
        for data in [&b""[..], b"{}\0", b"{\"capabilities\":{}}", b"{\"capabilities\":{}}\0"] {
            let expected = Negotiated {
                version: Version { major: 0, minor: 0 },
                max_fds: 1,
                max_data: MAX_DATA,
                twin: None,
            };
            assert_eq!(parse_reply(&bytes(0, 0, data)), Ok(expected));
        }
        let small = b"{\"capabilities\":{\"max_msg_fds\":0,\"max_data_xfer_size\":4096}}\0";
        let negotiated = parse_reply(&bytes(0, 1, small)).unwrap();
        assert_eq!((negotiated.max_fds, negotiated.max_data), (1, 4096));
    }

    #[test]
    fn invalid_replies_are_refused() {
        let deep = "[".repeat(MAX_REPLY);
        for data in [
            "no\0",
            "\0\0",
            "{\"capabilities\":{\"max_data_xfer_size\":7}}\0",
            "{\"capabilities\":{\"max_msg_fds\":-1}}\0",
            "{\"capabilities\":{\"max_msg_fds\":\"8\"}}\0",
            "{} {}",
            "HTTP/1.1",
            &deep,
            &format!("{{\"x\":{deep}"),
        ] {
            parse_reply(&bytes(0, 1, data.as_bytes())).unwrap_err();
        }
        parse_reply(&[0, 0, 0]).unwrap_err();
    }
}
