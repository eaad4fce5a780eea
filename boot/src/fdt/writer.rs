//! vm-fdt's writer, with names that it refuses and boards use.
//!
//! [`FdtWriter`] holds names to the letter of the Devicetree Specification (2.2.1 and 2.2.4): 31
//! characters, and a node's begins with a letter. Linux' trees for arm64 have property names of up to
//! 47 characters, which drivers ask for by name, and node names that are longer or begin with a
//! digit. Such a name is written as [`STAND_IN`], and put right in the finished blob.

use vm_fdt::{Error, FdtWriter, FdtWriterNode};

use super::error::BlobError;
use super::read::{BEGIN_NODE, PROP};

/// The name under which a node or property is written whose own name is refused.
///
/// Others may have this name too: which ones stand for another is known by their place.
const STAND_IN: &str = "x";

/// Fields of the header, by their number (Devicetree Specification, 5.2).
const TOTAL: usize = 1;
const STRUCTURE: usize = 2;
const STRINGS: usize = 3;
const STRINGS_SIZE: usize = 8;
const STRUCTURE_SIZE: usize = 9;

/// Names that were refused, by the number of the node or property among those of the blob.
type Refused<'a> = Vec<(usize, &'a str)>;

/// A [`FdtWriter`] that takes names of any length.
pub(super) struct AnyNameWriter<'a> {
    fdt: FdtWriter,
    node_count: usize,
    property_count: usize,
    nodes: Refused<'a>,
    properties: Refused<'a>,
}

impl<'a> AnyNameWriter<'a> {
    pub(super) fn new() -> Result<Self, BlobError> {
        let (nodes, properties) = (Vec::new(), Vec::new());
        Ok(Self { fdt: FdtWriter::new()?, node_count: 0, property_count: 0, nodes, properties })
    }

    /// Begins a node. Its name consists of characters that can be in one.
    pub(super) fn begin_node(&mut self, name: &'a str) -> Result<FdtWriterNode, BlobError> {
        let begun = match self.fdt.begin_node(name) {
            Err(Error::InvalidNodeName) => {
                self.nodes.push((self.node_count, name));
                self.fdt.begin_node(STAND_IN)?
            }
            begun => begun?,
        };
        self.node_count = self.node_count.saturating_add(1);
        Ok(begun)
    }

    /// Ends the node begun last.
    pub(super) fn end_node(&mut self, node: FdtWriterNode) -> Result<(), BlobError> {
        Ok(self.fdt.end_node(node)?)
    }

    /// Writes a property. Its name consists of characters that can be in one.
    pub(super) fn property(&mut self, name: &'a str, value: &[u8]) -> Result<(), BlobError> {
        match self.fdt.property(name, value) {
            Err(Error::InvalidPropertyName) => {
                self.properties.push((self.property_count, name));
                self.fdt.property(STAND_IN, value)?;
            }
            written => written?,
        }
        self.property_count = self.property_count.saturating_add(1);
        Ok(())
    }

    /// The blob, all names in place.
    pub(super) fn finish(self) -> Result<Vec<u8>, BlobError> {
        let blob = self.fdt.finish()?;
        if self.nodes.is_empty() && self.properties.is_empty() {
            return Ok(blob);
        }
        restore(&blob, &self.nodes, &self.properties)
    }
}

/// A blob of [`FdtWriter`] with these names instead of stand-ins: the structure block is written
/// anew, the names of properties are added to the strings.
fn restore(blob: &[u8], nodes: &Refused, properties: &Refused) -> Result<Vec<u8>, BlobError> {
    let field = |index: usize| word(blob, index.saturating_mul(4));
    let (begin, size) = (field(STRUCTURE), field(STRUCTURE_SIZE));
    let structure = blob.get(begin..).and_then(|rest| rest.get(..size)).unwrap_or_default();
    let mut strings = blob.get(field(STRINGS)..).unwrap_or_default().to_vec();
    let mut restored = blob.get(..begin).unwrap_or_default().to_vec();

    let (mut nodes, mut properties) = (numbered(nodes), numbered(properties));
    let mut at = 0_usize;
    while let Some(token) = structure.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        restored.extend(token);
        at = at.saturating_add(4);
        match u32::from_be_bytes(*token) {
            BEGIN_NODE => {
                let rest = structure.get(at..).unwrap_or_default();
                let old = rest.split(|byte| *byte == 0).next().unwrap_or_default();
                restored.extend(nodes().map_or(old, str::as_bytes));
                restored.push(0);
                restored.resize(restored.len().next_multiple_of(4), 0);
                at = at.saturating_add(old.len().saturating_add(1).next_multiple_of(4));
            }
            PROP => {
                let length = word(structure, at);
                let name = match properties() {
                    Some(name) => {
                        let offset = strings.len();
                        strings.extend(name.bytes().chain([0]));
                        offset
                    }
                    None => word(structure, at.saturating_add(4)),
                };
                restored.extend(cell(length)?);
                restored.extend(cell(name)?);
                let begin = at.saturating_add(8);
                at = begin.saturating_add(length.next_multiple_of(4));
                restored.extend(structure.get(begin..at).unwrap_or_default());
            }
            _ => {}
        }
    }
    let end = restored.len();
    restored.extend(&strings);
    let fields = [
        (TOTAL, restored.len()),
        (STRINGS, end),
        (STRINGS_SIZE, strings.len()),
        (STRUCTURE_SIZE, end.saturating_sub(begin)),
    ];
    for (index, value) in fields {
        let place = restored.get_mut(index.saturating_mul(4)..).and_then(|r| r.first_chunk_mut());
        if let Some(place) = place {
            *place = cell(value)?;
        }
    }
    Ok(restored)
}

/// Answers, called once for each node or property in order, with the name that was refused for it.
fn numbered<'a>(refused: &Refused<'a>) -> impl FnMut() -> Option<&'a str> {
    let mut refused = refused.iter().peekable();
    let mut number = 0_usize;
    move || {
        let name = refused.next_if(|(of, _)| *of == number).map(|(_, name)| *name);
        number = number.saturating_add(1);
        name
    }
}

/// The number at an offset.
fn word(bytes: &[u8], at: usize) -> usize {
    let cell = bytes.get(at..).and_then(|rest| rest.first_chunk());
    cell.map_or(0, |cell| usize::try_from(u32::from_be_bytes(*cell)).unwrap_or(usize::MAX))
}

/// A length or offset as a blob has it.
fn cell(number: usize) -> Result<[u8; 4], BlobError> {
    u32::try_from(number).map(u32::to_be_bytes).map_err(|_| BlobError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::super::{Node, from_blob, to_blob};
    use super::*;

    const LONG: &str = "marvell,reg-init-of-a-very-long-property-name-47";

    #[test]
    fn names_that_are_refused_are_in_the_blob_as_they_are() {
        let below = Node::new("1st-of-its-kind").u32(STAND_IN, 3).u32(LONG, 4).flag("y");
        let node = Node::new("a-node-with-a-name-of-more-than-31-characters@12345678")
            .u32(LONG, 1)
            .string("x,31-characters-are-just-enough", "abc")
            .bytes("and-thirty-two-characters-aren't".replace('\'', "0").as_str(), [1, 2, 3, 4, 5])
            .child(below)
            .child(Node::new(STAND_IN).u32(STAND_IN, 7));
        let root = Node::new("").u32("#address-cells", 2).child(node).child(Node::new("z"));
        assert_eq!(from_blob(&to_blob(&root).unwrap()).unwrap(), root);
    }

    #[test]
    fn without_such_names_it_is_the_writers_own_blob() {
        let mut fdt = FdtWriter::new().unwrap();
        let mut ours = AnyNameWriter::new().unwrap();
        let (open, ours_open) = (fdt.begin_node("").unwrap(), ours.begin_node("").unwrap());
        fdt.property("model", b"m\0").unwrap();
        ours.property("model", b"m\0").unwrap();
        fdt.end_node(open).unwrap();
        ours.end_node(ours_open).unwrap();
        assert_eq!(ours.finish().unwrap(), fdt.finish().unwrap());
    }
}
