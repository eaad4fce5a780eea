//! Where debuggers connect.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::cli::{GdbAddress, GdbOptions};
use crate::error::Error;
use crate::output;
use crate::unix_listener::UnixSocket;

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
        let (socket, target) = match &options.address {
            GdbAddress::Unix(path) => {
                (Socket::Unix(UnixSocket::listen("--gdb", path)?), options.address.to_string())
            }
            GdbAddress::Tcp(address) => {
                let listen = || -> io::Result<_> {
                    let listener = TcpListener::bind(address)?;
                    listener.set_nonblocking(true)?;
                    let address = listener.local_addr()?;
                    Ok((listener, address))
                };
                let (listener, bound) = listen().map_err(|e| {
                    Error::new(format!("--gdb tcp:{address}: nobody can connect there: {e}"))
                        .help("--gdb tcp:0 takes a port that is free")
                })?;
                if !bound.ip().is_loopback() {
                    log::warn!("--gdb tcp:{bound}: whoever can connect there controls the guest");
                }
                (Socket::Tcp(listener), bound.to_string())
            }
        };
        let waits = if options.wait { ", the guest waits for it" } else { "" };
        output::say(&format!("strait: GDB: target remote {target}{waits}\n"));
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
                Ok(Some(File::from(OwnedFd::from(client))))
            }
            Err(e) if gone.contains(&e.kind()) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }
}
