//! Flattened device tree blob → tree (Devicetree Specification, 5).
//!
//! A blob comes from a file and is trusted as little: every offset is checked, and what is wrong is
//! said with its place.

use super::error::ReadError;
use super::node::{MAX_DEPTH, Node, Property, is_phandle};
use super::value::Value;

// The numbers of the format (Devicetree Specification, 5.2 "Header" and 5.4.1 "Lexical structure").

/// The header's first field.
const MAGIC: u32 = 0xd00d_feed;

/// The header's size in bytes: ten fields.
const HEADER_SIZE: u32 = 40;

/// The version of a blob that vm-fdt writes, and the newest that is read.
const VERSION: u32 = 17;

/// The oldest version as which a blob of [`VERSION`] can be read.
const LAST_COMPATIBLE: u32 = 16;

/// A node begins; its name follows.
pub(super) const BEGIN_NODE: u32 = 1;

/// A node ends.
const END_NODE: u32 = 2;

/// A property; its length, the offset of its name and its bytes follow.
pub(super) const PROP: u32 = 3;

/// Nothing.
const NOP: u32 = 4;

/// The structure block ends.
const END: u32 = 9;

/// The tree that a blob holds, values as [`Value::of_bytes`] takes them. Phandles that nodes have
/// are [their own](Node::get_phandle).
///
/// # Errors
///
/// What is malformed, and where.
pub fn from_blob(blob: &[u8]) -> Result<Node, ReadError> {
    let field = |index: usize, what| {
        let begin = index.saturating_mul(4);
        let bytes = blob.get(begin..).and_then(|rest| rest.first_chunk());
        bytes.map(|b| u32::from_be_bytes(*b)).ok_or(ReadError::CutOff { what })
    };
    if field(0, "its magic number") != Ok(MAGIC) {
        return Err(ReadError::Magic);
    }
    let header = |index| field(index, "its header");
    let (version, oldest) = (header(5)?, header(6)?);
    if version < LAST_COMPATIBLE || oldest > VERSION {
        return Err(ReadError::Version { version });
    }
    let total = usize::try_from(header(1)?).unwrap_or(usize::MAX);
    let whole = blob.get(..total).ok_or(ReadError::CutOff { what: "its blocks" })?;
    let from = |offset: u32, what| {
        let offset = usize::try_from(offset.max(HEADER_SIZE)).unwrap_or(usize::MAX);
        whole.get(offset..).ok_or(ReadError::CutOff { what })
    };
    let structure = from(header(2)?, "the structure block")?;
    let strings = from(header(3)?, "the strings block")?;
    let mut cursor = Cursor { structure, offset: 0, strings };
    match cursor.token()? {
        BEGIN_NODE => cursor.node(0),
        _ => Err(cursor.malformed("first token")),
    }
    .and_then(|root| match cursor.token()? {
        END => Ok(root),
        _ => Err(cursor.malformed("last token")),
    })
}

/// A place in the structure block.
struct Cursor<'a> {
    structure: &'a [u8],
    offset: usize,
    strings: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// A node, of which the first token has been read.
    fn node(&mut self, depth: usize) -> Result<Node, ReadError> {
        if depth >= MAX_DEPTH {
            return Err(ReadError::TooDeep);
        }
        let name = self.name()?;
        let mut node = Node::new(name);
        let mut properties = Vec::new();
        loop {
            match self.token()? {
                PROP if node.children().is_empty() => {
                    let (name, bytes) = self.property()?;
                    match <[u8; 4]>::try_from(bytes) {
                        Ok(own) if is_phandle(name) => {
                            node = node.phandle(u32::from_be_bytes(own));
                        }
                        _ => {
                            let (name, value) = (name.to_owned(), Value::of_bytes(bytes));
                            properties.push(Property { name, value });
                        }
                    }
                }
                BEGIN_NODE => {
                    let child = self.node(depth.saturating_add(1))?;
                    node.children_mut().push(child);
                }
                END_NODE => {
                    node.set_properties(&properties);
                    return Ok(node);
                }
                _ => return Err(self.malformed("token")),
            }
        }
    }

    /// The next token that isn't [`NOP`].
    fn token(&mut self) -> Result<u32, ReadError> {
        loop {
            match self.u32()? {
                NOP => {}
                token => return Ok(token),
            }
        }
    }

    fn u32(&mut self) -> Result<u32, ReadError> {
        let bytes = self.rest().first_chunk().ok_or(ReadError::CutOff { what: "its structure" })?;
        self.offset = self.offset.saturating_add(4);
        Ok(u32::from_be_bytes(*bytes))
    }

    fn rest(&self) -> &'a [u8] {
        self.structure.get(self.offset..).unwrap_or_default()
    }

    /// A node's name, and the padding behind it.
    fn name(&mut self) -> Result<&'a str, ReadError> {
        let name = text(self.rest()).ok_or_else(|| self.malformed("name of a node"))?;
        self.advance(name.len().saturating_add(1));
        Ok(name)
    }

    /// A property's name and bytes, and the padding behind.
    fn property(&mut self) -> Result<(&'a str, &'a [u8]), ReadError> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        let name = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        let name = self.strings.get(name..).and_then(text).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| self.malformed("name of a property"))?;
        let bytes = self.rest().get(..length).ok_or(ReadError::CutOff { what: "a property" })?;
        self.advance(length);
        Ok((name, bytes))
    }

    fn advance(&mut self, length: usize) {
        let end = self.offset.saturating_add(length);
        self.offset = end.checked_next_multiple_of(4).unwrap_or(end);
    }

    fn malformed(&self, what: &'static str) -> ReadError {
        ReadError::Malformed { what, offset: self.offset }
    }
}

/// The text at the beginning of `bytes`, up to a NUL.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(bytes.get(..end)?).ok()
}

#[cfg(test)]
mod tests {
    use super::super::blob::to_blob;
    use super::*;

    fn tree() -> Node {
        Node::new("").string("model", "x").child(
            Node::new("soc").label("soc").phandle(7).child(
                Node::at("dma", 0x1000)
                    .reg([(0x1000, 0x1000)])
                    .refs("bus", ["soc"])
                    .flag("dma-coherent")
                    .bytes("odd", [1, 2, 3, 4, 5]),
            ),
        )
    }

    #[test]
    fn what_is_written_is_read_back() {
        let read = from_blob(&to_blob(&tree()).unwrap()).unwrap();
        let expected = Node::new("").string("model", "x").child(
            Node::new("soc").phandle(7).child(
                Node::at("dma", 0x1000)
                    .reg([(0x1000, 0x1000)])
                    .u32("bus", 7)
                    .flag("dma-coherent")
                    .bytes("odd", [1, 2, 3, 4, 5]),
            ),
        );
        assert_eq!(read, expected);
    }

    #[test]
    fn no_damage_is_worse_than_an_error() {
        let blob = to_blob(&tree()).unwrap();
        for length in 0..blob.len() {
            assert!(from_blob(&blob[..length]).is_err(), "{length}");
        }
        for at in 0..blob.len() {
            for byte in [0, 1, 3, 4, 9, 0x7f, 0xff] {
                let mut damaged = blob.clone();
                damaged[at] = byte;
                // Whatever comes of it comes back, and can be written or is refused.
                if let Ok(tree) = from_blob(&damaged) {
                    let _ = to_blob(&tree);
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let blob = to_blob(&tree()).unwrap();
        let with = |at: usize, value: u32| {
            let mut blob = blob.clone();
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
            from_blob(&blob).unwrap_err()
        };
        assert_eq!(from_blob(b"/dts-v1/;"), Err(ReadError::Magic));
        assert_eq!(from_blob(b""), Err(ReadError::Magic));
        assert_eq!(with(20, 2), ReadError::Version { version: 2 });
        assert_eq!(with(24, 18), ReadError::Version { version: 17 });
        assert_eq!(with(4, u32::MAX), ReadError::CutOff { what: "its blocks" });
        assert_eq!(with(8, u32::MAX), ReadError::CutOff { what: "the structure block" });
        assert!(matches!(with(56, 5), ReadError::Malformed { what: "first token", .. }));
        let deep = (0..62).fold(Node::new("leaf"), |node, _| Node::new("n").child(node));
        let mut blob = to_blob(&Node::new("").child(deep)).unwrap();
        assert!(from_blob(&blob).is_ok());
        // A NUL for the leaf's END_NODE token's neighbour makes another level of it.
        let at = blob.windows(4).position(|w| w == b"leaf").unwrap() + 8;
        blob[at + 3] = 1;
        assert!(from_blob(&blob).is_err());
    }
}
