//! Backends that strait starts.

/// A program that was started to be a backend. It ends when this is dropped, after the connection to it.
pub trait Program: Send {
    /// How it has ended, as it is said of it (`ended with status 1`), if it does so at once.
    fn ending(&mut self) -> Option<String>;
}
