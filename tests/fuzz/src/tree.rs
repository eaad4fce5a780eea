//! Device trees of bytes.

use arbitrary::{Result, Unstructured};
use boot::fdt::Node;

/// The deepest node, which is deeper than strait takes.
const MAX_DEPTH: usize = 80;

/// What names and values are chosen from.
pub struct Words {
    /// Names of nodes.
    pub nodes: &'static [&'static str],
    /// Names of properties.
    pub properties: &'static [&'static str],
    /// Values that are text.
    pub texts: &'static [&'static str],
}

impl Words {
    /// The tree that the bytes tell, to their end.
    pub fn tree(&self, u: &mut Unstructured<'_>) -> Result<Node> {
        self.node(u, "", 0)
    }

    fn node(&self, u: &mut Unstructured<'_>, name: &str, depth: usize) -> Result<Node> {
        let mut node = Node::new(name);
        while !u.is_empty() {
            let byte = u.arbitrary::<u8>()?;
            let (kind, value) = (byte & 7, byte >> 3);
            match kind {
                0 | 1 if depth < MAX_DEPTH => {
                    let name = word(self.nodes, u.arbitrary::<u8>()?);
                    let taken = node.children().iter().any(|child| child.name() == name);
                    let name = if taken { format!("{name}{value}") } else { name.to_owned() };
                    node = node.child(self.node(u, &name, depth + 1)?);
                }
                2 | 3 => return Ok(node),
                _ => {
                    let name = word(self.properties, u.arbitrary::<u8>()?);
                    node = self.property(u, node, name, usize::from(value))?;
                }
            }
        }
        Ok(node)
    }

    fn property(
        &self,
        u: &mut Unstructured<'_>,
        node: Node,
        name: &str,
        value: usize,
    ) -> Result<Node> {
        let count = value >> 2;
        Ok(match value & 3 {
            0 => {
                let cells = (0..count + 1).map(|_| Ok(u32::from(u.arbitrary::<u8>()?)));
                node.cells(name, cells.collect::<Result<Vec<u32>>>()?)
            }
            1 => {
                let texts = (0..count + 1).map(|_| Ok(word(self.texts, u.arbitrary::<u8>()?)));
                node.strings(name, texts.collect::<Result<Vec<&str>>>()?)
            }
            2 => node.bytes(name, u.bytes((count * 4).min(u.len()))?),
            _ => {
                let cells = (0..count + 1).map(|_| u.arbitrary::<u32>());
                node.cells(name, cells.collect::<Result<Vec<u32>>>()?)
            }
        })
    }
}

fn word(words: &[&'static str], index: u8) -> &'static str {
    words[usize::from(index) % words.len()]
}
