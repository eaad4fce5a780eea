//! Device trees: the vocabulary in which every part of the machine describes itself.
//!
//! A part returns a [`Node`]; nodes refer to one another by [`Label`], and numbers (phandles) are
//! given only when the finished tree is written out.

mod node;

pub use node::{Cell, Label, Node, Property, Value};
