//! A client of the control socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use event_manager::EventSet;

/// How much is read at once, in bytes.
const READ_SIZE: usize = 4096;

/// The largest message of a client, in bytes.
const MAX_MESSAGE: usize = 64 << 10;

/// How much may wait to be read by a client, in bytes; one that lets more wait is turned away.
const MAX_OUTPUT: usize = 1 << 20;

/// A client, with what it has sent and what it is to read.
pub struct Client {
    file: File,
    input: Vec<u8>,
    output: Vec<u8>,
    /// There is a whole message in the input.
    is_whole: bool,
    /// What it is polled for.
    pub polled: Option<EventSet>,
    /// Which events it is told of; all, if none are named.
    subscribed: Option<Option<Vec<String>>>,
    /// It is to go.
    gone: bool,
}

impl Client {
    /// The client at the other end of this socket, which is non-blocking.
    pub fn new(file: File) -> Self {
        let (input, output) = Default::default();
        let (is_whole, polled, subscribed, gone) = (false, None, None, false);
        Self { file, input, output, is_whole, polled, subscribed, gone }
    }

    /// How many bytes it has sent, or has to read.
    #[cfg(feature = "fuzzing")]
    pub fn held(&self) -> usize {
        self.input.len().saturating_add(self.output.len())
    }

    /// Whether it is to go.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Turns it away.
    pub fn turn_away(&mut self) {
        self.gone = true;
    }

    /// What it is waited for: it sends no more before its last message was taken, and it has read what there is.
    pub fn wanted(&self) -> EventSet {
        if self.output.is_empty() && !self.is_whole { EventSet::IN } else { EventSet::OUT }
    }

    /// It has sent something, takes more, or is gone.
    pub fn serve(&mut self, events: EventSet) {
        if events.contains(EventSet::OUT) {
            self.flush();
        }
        if events.contains(EventSet::IN) {
            self.read();
        } else if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            // What it sent before is taken.
            self.gone |= !self.has_message();
        }
    }

    /// Reads once.
    fn read(&mut self) {
        let mut buffer = [0; READ_SIZE];
        match self.file.read(&mut buffer) {
            Ok(count @ 1..) => {
                self.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
                self.is_whole = self.input.contains(&0);
                self.gone |= !self.is_whole && self.input.len() > MAX_MESSAGE;
            }
            Err(e) if is_temporary(&e) => {}
            Ok(0) | Err(_) => self.gone = true,
        }
    }

    /// Whether there is a message of it, and it has read the answer to the last.
    fn has_message(&self) -> bool {
        !self.gone && self.output.is_empty() && self.is_whole
    }

    /// Its next message, without the zero, if it has read the answer to the last.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        if !self.has_message() {
            return None;
        }
        let end = self.input.iter().position(|byte| *byte == 0)?;
        let rest = self.input.split_off(end.saturating_add(1));
        let mut message = std::mem::replace(&mut self.input, rest);
        self.is_whole = self.input.contains(&0);
        message.pop();
        Some(message)
    }

    /// Has it read this message, as soon as it does.
    pub fn send(&mut self, message: &str) {
        self.output.extend_from_slice(message.as_bytes());
        self.output.push(0);
        self.flush();
        self.gone |= self.output.len() > MAX_OUTPUT;
    }

    /// Tells it of events with these names from here on, or of all.
    pub fn subscribe(&mut self, filter: Option<Vec<String>>) {
        self.subscribed = Some(filter);
    }

    /// Whether it is told of this event.
    pub fn wants(&self, event: &str) -> bool {
        match &self.subscribed {
            None => false,
            Some(None) => true,
            Some(Some(filter)) => filter.iter().any(|name| name == event),
        }
    }

    /// Writes what can be written.
    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.file.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count.min(self.output.len()))),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.gone |= !is_temporary(&e);
                    return;
                }
            }
        }
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn is_temporary(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
