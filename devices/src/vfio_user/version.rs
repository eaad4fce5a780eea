//! Agreeing on a version ("VFIO_USER_VERSION" in the specification).

use std::fmt;

use super::json;
use super::message::{MOST_DATA, MOST_FDS, Payload, Reader};

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Versions of another major number are something else.
    pub major: u16,
    /// Grows as messages are added.
    pub minor: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What this client speaks.
pub(super) const OURS: Version = Version { major: 0, minor: 1 };

/// The most that a server's answer may take, in bytes.
pub(super) const MOST: usize = 4096;

/// What was agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreement {
    pub(super) version: Version,
    /// The most descriptors that the server takes with a message.
    pub(super) most_fds: usize,
    /// The most data that a message may carry, for both sides, in bytes.
    pub(super) most_data: usize,
    /// Which of the descriptors that came along is the server's connection for its own requests
    /// (`twin_socket`), if there is one.
    pub(super) twin: Option<usize>,
}

/// What is proposed to the server.
///
/// With `twin_socket` a server sends its own requests on a connection of their own. On one for both
/// sides, libvfio-user takes whatever comes for the answer it waits for (`lib/tran.c`,
/// `lib/tran_sock.c`; the specification doesn't have it).
pub(super) fn proposal() -> Payload {
    let json = format!(
        "{{\"capabilities\":{{\"max_msg_fds\":{MOST_FDS},\"max_data_xfer_size\":{MOST_DATA},\
         \"twin_socket\":{{\"supported\":true}}}}}}"
    );
    Payload::default()
        .bytes(&OURS.major.to_ne_bytes())
        .bytes(&OURS.minor.to_ne_bytes())
        .bytes(json.as_bytes())
        .bytes(&[0])
}

/// Reads the server's answer; the error says what of it makes no sense.
pub(super) fn answer(payload: &[u8]) -> Result<Agreement, String> {
    let mut reader = Reader(payload);
    let version = reader.u16().zip(reader.u16());
    let (major, minor) = version.ok_or("an answer without a version")?;
    let data = reader.0;
    // It ends with a zero, which some leave out; and so may all of it be.
    let text = data.strip_suffix(&[0]).unwrap_or(data);
    let text = if data.is_empty() { b"{}" } else { text };
    let no_json = |()| "version data that isn't JSON".to_owned();
    let number = |path: &[&str], default| {
        let found = json::number(text, path).map_err(no_json)?;
        Ok::<_, String>(found.map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX)))
    };
    // The defaults are the specification's.
    let most_fds = number(&["capabilities", "max_msg_fds"], 1)?.clamp(1, MOST_FDS);
    let most_data = number(&["capabilities", "max_data_xfer_size"], 1 << 20)?.min(MOST_DATA);
    if most_data < 8 {
        return Err(format!("a max_data_xfer_size of {most_data}, less than a register takes"));
    }
    let has_twin = json::is_true(text, &["capabilities", "twin_socket", "supported"]);
    let twin = number(&["capabilities", "twin_socket", "fd_index"], usize::MAX)?;
    let twin = has_twin.map_err(no_json)?.then_some(twin);
    Ok(Agreement { version: Version { major, minor }, most_fds, most_data, twin })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(major: u16, minor: u16, data: &[u8]) -> Vec<u8> {
        [&major.to_ne_bytes(), &minor.to_ne_bytes(), data].concat()
    }

    #[test]
    fn what_is_proposed_can_be_read() {
        let agreement = answer(&proposal().0).unwrap();
        let (version, twin) = (OURS, Some(usize::MAX));
        let expected = Agreement { version, most_fds: MOST_FDS, most_data: MOST_DATA, twin };
        assert_eq!(agreement, expected);
    }

    #[test]
    fn a_server_names_its_connection_for_its_own_requests() {
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
            assert_eq!(answer(&bytes(0, 1, text.as_bytes())).unwrap().twin, twin, "{text}");
        }
    }

    #[test]
    fn what_a_server_leaves_out_has_its_default() {
        for data in [&b""[..], b"{}\0", b"{\"capabilities\":{}}", b"{\"capabilities\":{}}\0"] {
            let expected = Agreement {
                version: Version { major: 0, minor: 0 },
                most_fds: 1,
                most_data: MOST_DATA,
                twin: None,
            };
            assert_eq!(answer(&bytes(0, 0, data)), Ok(expected));
        }
        let small = b"{\"capabilities\":{\"max_msg_fds\":0,\"max_data_xfer_size\":4096}}\0";
        let agreement = answer(&bytes(0, 1, small)).unwrap();
        assert_eq!((agreement.most_fds, agreement.most_data), (1, 4096));
    }

    #[test]
    fn answers_that_make_no_sense_are_refused() {
        for data in [&b"no\0"[..], b"{\"capabilities\":{\"max_data_xfer_size\":7}}\0", b"\0\0"] {
            answer(&bytes(0, 1, data)).unwrap_err();
        }
        answer(&[0, 0, 0]).unwrap_err();
    }
}
