//! Where debuggers connect.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::cli::{GdbAddress, GdbOptions};
use crate::error::Error;
use crate::output;
use crate::unix_listener::UnixSocket;

/// How long a silent connection is left alone, in seconds, and then how many times it is asked, at this interval,
/// whether its other end is still there.
const KEEP_ALIVE_SECONDS: libc::c_int = 5;
const KEEP_ALIVE_PROBES: libc::c_int = 6;

/// A listening socket.
pub struct Listener {
    socket: Socket,
    waits: bool,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

impl Listener {
    /// Listens as the option says, and tells on standard error where.
    ///
    /// # Errors
    ///
    /// Somebody else listens there, or nobody can.
    pub fn open(options: &GdbOptions) -> Result<Self, Error> {
        let (socket, address) = match &options.address {
            GdbAddress::Unix(path) => {
                (Socket::Unix(UnixSocket::listen("--gdb", path)?), options.address.clone())
            }
            GdbAddress::Tcp(address) => {
                let listen = || -> io::Result<_> {
                    let listener = TcpListener::bind(SocketAddr::V4(*address))?;
                    listener.set_nonblocking(true)?;
                    let port = listener.local_addr()?.port();
                    Ok((listener, GdbAddress::Tcp(SocketAddrV4::new(*address.ip(), port))))
                };
                let (listener, bound) = listen().map_err(|e| {
                    Error::new(format!(
                        "--gdb tcp:{}: nobody can connect there: {e}",
                        options.address
                    ))
                    .help("--gdb tcp:0 takes a port that is free")
                })?;
                if !address.ip().is_loopback() {
                    log::warn!("--gdb tcp:{bound}: whoever can connect there controls the guest");
                }
                (Socket::Tcp(listener), bound)
            }
        };
        let bound = GdbOptions { address, wait: options.wait };
        output::say(&format!("strait: GDB: target remote {bound}\n"));
        Ok(Self { socket, waits: options.wait })
    }

    /// Whether the guest is to wait for the first debugger.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// The debugger that wants to come, open non-blocking, if there still is one.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors or memory.
    pub fn accept(&self) -> io::Result<Option<File>> {
        let listener = match &self.socket {
            Socket::Unix(socket) => return socket.accept(),
            Socket::Tcp(listener) => listener,
        };
        let gone = [
            io::ErrorKind::WouldBlock,
            io::ErrorKind::Interrupted,
            io::ErrorKind::ConnectionAborted,
        ];
        match listener.accept() {
            Ok((client, _)) => {
                client.set_nonblocking(true)?;
                client.set_nodelay(true)?;
                keep_alive(&client)?;
                Ok(Some(File::from(OwnedFd::from(client))))
            }
            Err(e) if gone.contains(&e.kind()) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Ends a connection whose other end is gone without a word (tcp(7)), as a machine is that was switched off: the
/// guest would be stopped for good.
fn keep_alive(client: &TcpStream) -> io::Result<()> {
    for (level, option, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEP_ALIVE_SECONDS),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEP_ALIVE_SECONDS),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEP_ALIVE_PROBES),
    ] {
        let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
        // SAFETY: the value is as long as it says, and the kernel reads it.
        let result = unsafe {
            libc::setsockopt(client.as_raw_fd(), level, option, (&raw const value).cast(), length)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_vanishes_is_noticed() {
        let address = GdbAddress::Tcp(SocketAddrV4::new([127, 0, 0, 1].into(), 0));
        let listener = Listener::open(&GdbOptions { address, wait: false }).unwrap();
        let Socket::Tcp(socket) = &listener.socket else { panic!("it is TCP's") };
        let _debugger = TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        let client = listener.accept().unwrap().unwrap();
        for (level, option, expected) in [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEP_ALIVE_SECONDS),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEP_ALIVE_PROBES),
        ] {
            let (mut value, mut length) =
                (0, libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap());
            // SAFETY: the kernel writes a number of that length.
            let result = unsafe {
                let value = (&raw mut value).cast();
                libc::getsockopt(client.as_raw_fd(), level, option, value, &raw mut length)
            };
            assert_eq!((result, value), (0, expected), "{option}");
        }
    }
}
