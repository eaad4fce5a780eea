//! Tap interfaces that outlive who makes them, as `ip tuntap add` makes them, and the queues of network
//! interfaces, as `ethtool` sets them.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use crate::CommandError;

/// Makes an interface called `name` for a user: a tap, or what `kind` says.
pub(crate) fn make(name: &str, user: u32, kind: &str) -> Result<(), CommandError> {
    let flags = match kind {
        "tap" => libc::IFF_TAP,
        "tun" => libc::IFF_TUN,
        "multi-queue" => libc::IFF_TAP | libc::IFF_MULTI_QUEUE,
        _ => return Err("tap, tun or multi-queue is needed".into()),
    };
    let file = open(name, flags)?;
    for (request, value) in [(libc::TUNSETOWNER, user), (libc::TUNSETPERSIST, 1)] {
        // SAFETY: the argument of either is a number.
        if unsafe { libc::ioctl(file.as_raw_fd(), request, libc::c_ulong::from(value)) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
    Ok(())
}

/// `ETHTOOL_SRINGPARAM` of Linux' include/uapi/linux/ethtool.h, and where in `struct ethtool_ringparam` the
/// sizes to set are.
const SET_RINGS: u32 = 0x11;
const RX_PENDING: usize = 5;
const TX_PENDING: usize = 8;

/// Has an interface use queues of these sizes.
pub(crate) fn resize_rings(name: &str, receive: u32, transmit: u32) -> Result<(), CommandError> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut sizes = [0u32; 9];
    (sizes[0], sizes[RX_PENDING], sizes[TX_PENDING]) = (SET_RINGS, receive, transmit);
    let mut request = named(name);
    request.ifr_ifru.ifru_data = sizes.as_mut_ptr().cast();
    // SAFETY: the kernel reads an ifreq, and a `struct ethtool_ringparam` of 9 words.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

/// A request about the interface of this name.
fn named(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

/// Opens an interface, made if it doesn't exist.
fn open(name: &str, flags: libc::c_int) -> Result<File, CommandError> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags | libc::IFF_NO_PI)?;
    // SAFETY: the kernel reads and writes an ifreq at the pointer.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(file)
}
