//! The guest's device tree node of an assigned device, made from the host's own.
//!
//! Generic: any device's node is copied as far as it has a meaning in the guest. A
//! [binding](super::bindings) then refines the [`NodeBuilder`], and [`NodeOptions`] have the last
//! word.

pub mod alias;
mod build;
mod builder;
mod clock;
mod domain;
mod firmware;
mod options;
mod path;
mod phandle_map;
mod property;
mod ranges;
mod report;
mod subtree;

pub use self::alias::Alias;
pub use self::build::GuestNodes;
pub use self::builder::NodeBuilder;
pub use self::clock::{Clock, HostClock};
pub use self::firmware::{ScmiClock, ScmiIds, ScmiNames};
pub use self::options::{NodeError, NodeOptions};
pub use self::phandle_map::{HostDeviceNode, PhandleMap};
pub use self::report::{Disposition, PropertyReport};

#[cfg(test)]
mod tests;
