//! Where a serial port's output goes.

use std::io::{self, Write};

use crate::bus::Action;
use crate::console::{Output, Room};

/// A transmitter, which accepts everything.
pub struct Transmitter {
    output: Box<dyn Output>,
    /// The result of the last bytes, until it is checked.
    last: io::Result<Room>,
    has_failed: bool,
}

impl Transmitter {
    /// One that writes to `output`.
    pub fn new(output: Box<dyn Output>) -> Self {
        Self { output, last: Ok(Room::Left), has_failed: false }
    }

    /// Checks the result of output.
    pub fn check(&mut self) -> Action {
        match std::mem::replace(&mut self.last, Ok(Room::Left)) {
            Ok(Room::Left) => return Action::None,
            Ok(Room::Full) => return Action::AwaitOutput,
            // The guest runs on without its console; logged once.
            Err(e) if !self.has_failed => {
                self.has_failed = true;
                log::warn!("serial: output can't be written, the rest is lost: {e}");
            }
            Err(_) => (),
        }
        Action::None
    }
}

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.last = self.output.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
