//! The guest's device tree node of an assigned device, made from the host's own.
//!
//! Generic: any device's node is copied as far as it has a meaning in the guest. A
//! [binding](super::bindings) then refines the [`Draft`], and a person's [`NodeOptions`] have the
//! last word.

mod account;
pub mod alias;
mod clock;
mod copies;
mod draft;
mod finish;
mod options;
mod property;
mod subtree;
mod windows;

pub use self::account::{Account, Fate};
pub use self::alias::Alias;
pub use self::clock::Clock;
pub use self::copies::{Copies, Given};
pub use self::draft::Draft;
pub use self::finish::GuestNodes;
pub use self::options::{NodeError, NodeOptions};

#[cfg(test)]
mod tests;
