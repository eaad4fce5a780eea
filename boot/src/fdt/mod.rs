//! Device trees: the vocabulary in which every part of the machine describes itself.
//!
//! A part returns a [`Node`]; nodes refer to one another by [`Label`], and numbers (phandles) are
//! given only when the finished tree is written out.

mod blob;
mod dts;
pub mod host;
mod node;
mod phandle;

pub use blob::{BlobError, is_property_name, to_blob};
pub use dts::{subtree_to_dts, to_dts};
pub use node::{Cell, Label, Node, Property, Value};
