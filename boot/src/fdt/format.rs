//! The numbers of the flattened format (Devicetree Specification, 5.2 "Header" and 5.4.1 "Lexical
//! structure").

/// The header's first field.
pub(super) const MAGIC: u32 = 0xd00d_feed;

/// The header's size in bytes: ten fields.
pub(super) const HEADER_SIZE: u32 = 40;

/// The version of a blob that vm-fdt writes, and the newest that is read.
pub(super) const VERSION: u32 = 17;

/// The oldest version as which a blob of [`VERSION`] can be read.
pub(super) const LAST_COMPATIBLE: u32 = 16;

/// A node begins; its name follows.
pub(super) const BEGIN_NODE: u32 = 1;

/// A node ends.
pub(super) const END_NODE: u32 = 2;

/// A property; its length, the offset of its name and its bytes follow.
pub(super) const PROP: u32 = 3;

/// Nothing.
pub(super) const NOP: u32 = 4;

/// The structure block ends.
pub(super) const END: u32 = 9;
