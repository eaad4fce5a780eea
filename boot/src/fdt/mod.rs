//! Device trees: the vocabulary in which every part of the machine describes itself.
//!
//! A part returns a [`Node`]; nodes refer to one another by [`Label`], and numbers (phandles) are
//! given only when the finished tree is written out.

mod blob;
mod dts;
mod error;
pub mod host;
mod node;
pub mod overlay;
mod phandle;
mod read;
mod value;
mod writer;

pub use blob::to_blob;
pub use dts::{subtree_to_dts, to_dts};
pub use error::{BlobError, ReadError};
pub use node::{Node, Property, is_node_name, is_property_name};
pub use phandle::FIRST_PHANDLE;
pub use read::from_blob;
pub use value::{Cell, Label, Value};
