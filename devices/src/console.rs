//! What the consoles of a guest need of the host: somewhere for output to go and input to come from.

use std::io::{self, Write};

/// Where a console's output goes.
pub trait Output: Send {
    /// Takes bytes, without blocking.
    ///
    /// # Errors
    ///
    /// They can't be written, and are lost.
    fn put(&mut self, bytes: &[u8]) -> io::Result<Room>;

    /// Waits until there is room for more, for a limited time, or until `stop`; not on a vCPU's thread
    /// with a lock held.
    fn wait_for_room(&mut self, stop: &dyn Fn() -> bool) {
        let _ = stop;
    }
}

/// Whether there is room for more output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Left,
    /// There is none: who makes it should wait.
    Full,
}

impl<W: Write + Send> Output for W {
    fn put(&mut self, bytes: &[u8]) -> io::Result<Room> {
        self.write_all(bytes).map(|()| Room::Left)
    }
}

/// A console that takes input for its guest.
pub trait Input: Send + Sync {
    /// Queues input; returns the number of bytes that there was room for. If that isn't all, the
    /// console signals an eventfd that it was made with when there is room again.
    fn enqueue(&self, bytes: &[u8]) -> usize;

    /// The terminal on which the console is has this size now, in characters; 0 by 0: not known.
    fn resize(&self, columns: u16, rows: u16) {
        let _ = (columns, rows);
    }
}
