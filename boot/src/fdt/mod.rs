//! Device trees: the vocabulary in which every part of the machine describes itself.
//!
//! A part returns a [`Node`]; nodes refer to one another by [`Label`], and numbers (phandles) are
//! given only when the finished tree is written out.

mod blob;
mod dts;
mod format;
pub mod host;
mod node;
pub mod overlay;
mod phandle;
mod read;
mod writer;

pub use blob::{BlobError, is_node_name, is_property_name, to_blob};
pub use dts::{subtree_to_dts, to_dts};
pub use node::{Cell, Label, Node, Property, Value};
pub use phandle::FIRST as FIRST_PHANDLE;
pub use read::{ReadError, from_blob};
