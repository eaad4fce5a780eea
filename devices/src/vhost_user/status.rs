//! The requests SET_STATUS and GET_STATUS (`VHOST_USER_PROTOCOL_F_STATUS`), which the `vhost` crate's frontend
//! has names for and no more: they are made on its connection, between two of its requests.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::Error as ProtocolError;
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// A device's status (virtio 1.2, 2.1): its driver has been reset.
pub(super) const RESET: u64 = 0;
/// Its driver has chosen features.
pub(super) const FEATURES_OK: u64 =
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK) as u64;
/// Its driver has set it up.
pub(super) const DRIVER_OK: u64 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK as u64;
/// The device can't go on.
pub(super) const NEEDS_RESET: u64 = VIRTIO_CONFIG_S_NEEDS_RESET as u64;

/// The numbers of the requests, and the header's flags: the version, and those of a reply and of a request
/// that wants one (vhost-user.rst, "Header").
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// The size of a header and of a number behind it, in bytes.
const HEADER_SIZE: usize = 12;
const NUMBER_SIZE: usize = size_of::<u64>();

/// Tells the backend its device's status, and waits for its reply if `REPLY_ACK` is agreed on.
pub(super) fn set(mut to: &UnixStream, status: u64, replies: bool) -> vhost::Result<()> {
    let flags = VERSION | if replies { NEED_REPLY } else { 0 };
    let mut message = header(SET_STATUS, flags, NUMBER_SIZE).to_vec();
    message.extend(status.to_ne_bytes());
    to.write_all(&message).map_err(failed)?;
    match replies.then(|| reply(to, SET_STATUS)).transpose()? {
        None | Some(0) => Ok(()),
        Some(_) => Err(vhost::Error::VhostUserProtocol(ProtocolError::BackendInternalError)),
    }
}

/// Asks the backend for its device's status.
pub(super) fn get(mut from: &UnixStream) -> vhost::Result<u64> {
    from.write_all(&header(GET_STATUS, VERSION, 0)).map_err(failed)?;
    reply(from, GET_STATUS)
}

fn header(request: u32, flags: u32, size: usize) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    let words = [request, flags, u32::try_from(size).unwrap_or_default()];
    let bytes = words.into_iter().flat_map(u32::to_ne_bytes);
    header.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    header
}

/// The number that answers a request.
fn reply(mut from: &UnixStream, request: u32) -> vhost::Result<u64> {
    let (mut told, mut number) = ([0; HEADER_SIZE], [0; NUMBER_SIZE]);
    from.read_exact(&mut told).map_err(failed)?;
    if told != header(request, VERSION | REPLY, NUMBER_SIZE) {
        return Err(vhost::Error::VhostUserProtocol(ProtocolError::InvalidMessage));
    }
    from.read_exact(&mut number).map_err(failed)?;
    Ok(u64::from_ne_bytes(number))
}

fn failed(error: io::Error) -> vhost::Error {
    vhost::Error::VhostUserProtocol(match error.kind() {
        io::ErrorKind::UnexpectedEof => ProtocolError::Disconnected,
        _ => ProtocolError::SocketBroken(error),
    })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn answered(answer: &[u8], ask: impl FnOnce(&UnixStream) -> vhost::Result<u64>) -> String {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let asked = thread::spawn(move || {
            let mut asked = Vec::new();
            theirs.read_to_end(&mut asked).map(|_| asked)
        });
        let result = ask(&ours);
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let asked = asked.join().unwrap().unwrap();
        format!("{asked:?} {result:?}")
    }

    #[test]
    fn a_status_is_told_and_asked_for() {
        let number = |request: u32, number: u64| {
            [header(request, 0x5, 8).as_slice(), &number.to_ne_bytes()].concat()
        };
        let set = |replies| move |to: &UnixStream| set(to, 11, replies).map(|()| 0);
        let said = answered(&[], set(false));
        assert_eq!(said, "[39, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0] Ok(0)");
        assert!(answered(&number(39, 0), set(true)).contains("39, 0, 0, 0, 9"));
        assert!(answered(&number(39, 0), set(true)).ends_with("Ok(0)"));
        assert!(answered(&number(39, 1), set(true)).contains("BackendInternalError"));
        assert_eq!(answered(&number(40, 15), get), "[40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0] Ok(15)");
        assert!(answered(&number(39, 15), get).contains("InvalidMessage"));
        assert!(answered(&[40, 0], get).contains("Disconnected"));
        assert!(answered(&[], get).contains("Disconnected"));
    }
}
