//! The connection to a GDB.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gdbstub::conn::Connection;

use super::gate::Gate;
use super::wait;

/// How long a GDB may take to read an answer: what waits for it, the guest among it, waits no longer.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often it is looked whether the run is over, while an answer isn't read.
const INTERVAL: Duration = Duration::from_millis(100);

/// From how many bytes on an answer is sent before it is complete.
const MAX_BUFFERED: usize = 16 << 10;

/// The connection to a GDB, of which no answer blocks for long.
pub struct Client {
    stream: File,
    gate: Arc<Gate>,
    buffered: Vec<u8>,
}

impl Client {
    /// The client at the other end of this socket, which is non-blocking.
    pub fn new(stream: File, gate: Arc<Gate>) -> Self {
        Self { stream, gate, buffered: Vec::new() }
    }

    /// What has arrived, put into `buffer`; `None` if nothing has.
    ///
    /// # Errors
    ///
    /// The client is gone.
    pub fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match self.stream.read(buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(buffer.get(..count)),
            Err(e) if is_temporary(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl Connection for Client {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.buffered.push(byte);
        if self.buffered.len() < MAX_BUFFERED { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let mut rest = self.buffered.as_slice();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(e) if is_temporary(&e) => {
                    if begun.elapsed() > DEADLINE || self.gate.exit_status().is_some() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    wait::until_writable(self.as_raw_fd(), INTERVAL);
                }
                Err(e) => return Err(e),
            }
        }
        self.buffered.clear();
        Ok(())
    }
}

fn is_temporary(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
