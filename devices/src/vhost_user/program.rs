//! Whom strait has for its backends.

use std::io;
use std::os::unix::net::UnixStream;

/// A program that was started to be a backend. It ends when this is dropped, after the connection to it.
pub trait Program: Send {
    /// How it has ended, as it is said of it (`ended with status 1`), if it does so at once.
    fn ending(&mut self) -> Option<String>;

    /// Starts it again after it has ended; the connection to the new one. Answers in a bounded time.
    ///
    /// # Errors
    ///
    /// It can't be started again, or may not.
    fn restart(&mut self) -> io::Result<UnixStream>;
}

/// Who connects again to a backend that was lost, where a device's thread may not open sockets itself.
pub trait Connector: Send {
    /// Connects to it, without waiting for it; the calls on what is answered block.
    ///
    /// # Errors
    ///
    /// Nobody listens, or it is another user's, or nobody connects any more.
    fn connect(&mut self) -> io::Result<UnixStream>;
}
