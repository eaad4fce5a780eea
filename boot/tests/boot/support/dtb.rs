//! A reader of device tree blobs (Devicetree Specification, 5) that shares no code with the writer.

/// A node as the blob has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    pub name: String,
    pub properties: Vec<(String, Vec<u8>)>,
    pub children: Vec<Parsed>,
}

impl Parsed {
    /// Reads a blob; panics with what is wrong with it.
    pub fn read(blob: &[u8]) -> Self {
        assert_eq!(word(blob, 0), 0xd00d_feed, "magic");
        assert_eq!(word(blob, 4), blob.len(), "total size");
        assert_eq!(word(blob, 20), 17, "version");
        let strings = &blob[word(blob, 12)..][..word(blob, 32)];
        let structure = &blob[word(blob, 8)..][..word(blob, 36)];
        let mut at = 0;
        assert_eq!(take(structure, &mut at), 1, "the root begins");
        let root = Self::node(structure, strings, &mut at);
        assert_eq!(take(structure, &mut at), 9, "the structure ends");
        assert_eq!(at, structure.len());
        root
    }

    fn node(structure: &[u8], strings: &[u8], at: &mut usize) -> Self {
        let mut node = Self { name: text(&structure[*at..]), ..Self::default() };
        *at = (*at + node.name.len() + 1).next_multiple_of(4);
        loop {
            match take(structure, at) {
                1 => node.children.push(Self::node(structure, strings, at)),
                2 => return node,
                3 => {
                    assert!(node.children.is_empty(), "a property behind a child");
                    let length = take(structure, at);
                    let name = text(&strings[take(structure, at)..]);
                    node.properties.push((name, structure[*at..*at + length].to_vec()));
                    *at = (*at + length).next_multiple_of(4);
                }
                4 => {}
                token => panic!("token {token}"),
            }
        }
    }

    /// The property called `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.properties.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_slice())
    }

    /// The cell called `phandle`.
    pub fn phandle(&self) -> Option<u32> {
        self.get("phandle").map(|value| u32::from_be_bytes(value.try_into().unwrap()))
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()).try_into().unwrap()
}

fn take(bytes: &[u8], at: &mut usize) -> usize {
    *at += 4;
    word(bytes, *at - 4)
}

fn text(bytes: &[u8]) -> String {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}
