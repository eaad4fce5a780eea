//! The other end of the assignable UART's wire.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::deadline::Deadline;
use super::failure::Failure;
use super::transcript::Transcript;

/// How long the other side has to say or to take something, in seconds.
const TIMEOUT: u64 = 90;

/// How often is looked whether time is up.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The wire of the UART that sysfs calls [`super::UART`].
pub struct Uart {
    stream: UnixStream,
    transcript: Arc<Transcript>,
    /// What came and hasn't been asked for.
    received: Vec<u8>,
}

impl Uart {
    pub(super) fn new(stream: UnixStream, transcript: Arc<Transcript>) -> Result<Self, Failure> {
        stream
            .set_read_timeout(Some(POLL_INTERVAL))
            .and_then(|()| stream.set_write_timeout(Some(POLL_INTERVAL)))
            .map_err(|error| Failure::new(format!("the UART's wire: {error}")))?;
        Ok(Self { stream, transcript, received: Vec::new() })
    }

    /// Sends `bytes`, as fast as the UART takes them.
    ///
    /// # Errors
    ///
    /// It doesn't take them in time.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        let deadline = Deadline::after(TIMEOUT);
        let mut rest = bytes.as_ref();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(error) => self.check(&error, deadline, "the UART to take what was sent")?,
            }
            // What comes meanwhile must not fill the wire.
            self.drain()?;
        }
        Ok(())
    }

    /// The next `count` bytes that the UART sends.
    ///
    /// # Errors
    ///
    /// They don't come in time.
    pub fn receive(&mut self, count: usize) -> Result<Vec<u8>, Failure> {
        let what = format!("the UART to send {count} bytes");
        self.until(&what, |received| (received.len() >= count).then_some(count))
    }

    /// What the UART sends up to and with `text`.
    ///
    /// # Errors
    ///
    /// It doesn't come in time.
    pub fn wait_for(&mut self, text: &str) -> Result<String, Failure> {
        let what = format!("the UART to say {text:?}");
        let bytes = self.until(&what, |received| {
            let at = received.windows(text.len()).position(|window| window == text.as_bytes());
            at.map(|at| at + text.len())
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Takes as much of what was received as `enough` says, once it does.
    fn until(
        &mut self,
        what: &str,
        enough: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<Vec<u8>, Failure> {
        let deadline = Deadline::after(TIMEOUT);
        loop {
            if let Some(count) = enough(&self.received) {
                return Ok(self.received.drain(..count).collect());
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    return Err(self.transcript.failure(format!("waiting for {what}: it ended")));
                }
                Ok(count) => self.record(buffer.get(..count).unwrap_or_default()),
                Err(error) => self.check(&error, deadline, what)?,
            }
        }
    }

    /// Takes what is there, without waiting.
    fn drain(&mut self) -> Result<(), Failure> {
        let broken = |error| Failure::new(format!("the UART's wire: {error}"));
        self.stream.set_nonblocking(true).map_err(broken)?;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.stream.read(&mut buffer) {
            self.record(buffer.get(..count).unwrap_or_default());
        }
        self.stream.set_nonblocking(false).map_err(broken)
    }

    fn record(&mut self, bytes: &[u8]) {
        // What is that long is data, and no reading for people.
        if bytes.len() < 256 {
            self.transcript.record("uart", bytes);
        } else {
            self.transcript.note(&format!("uart: {} bytes", bytes.len()));
        }
        self.received.extend_from_slice(bytes);
    }

    /// Lets a time-out pass until the deadline does.
    fn check(&self, error: &std::io::Error, deadline: Deadline, what: &str) -> Result<(), Failure> {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                if deadline.left().is_some() =>
            {
                Ok(())
            }
            _ => Err(self.transcript.failure(format!("waiting for {what}: {error}"))),
        }
    }
}
