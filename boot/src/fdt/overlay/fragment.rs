//! A blob → fragments, whose references are labels (Linux
//! Documentation/devicetree/dynamic-resolution-notes.rst; dtc Documentation/dt-object-internal.txt).

use std::collections::BTreeMap;

use super::error::OverlayFault;
use crate::fdt::node::MAX_DEPTH;
use crate::fdt::node::Node;
use crate::fdt::value::{Cell, Label, Value, strings};

/// One part of an overlay: what changes, and how.
#[derive(Clone, Debug)]
pub(super) struct Fragment {
    pub(super) target: Target,
    /// The node `__overlay__`.
    pub(super) content: Node,
}

/// What a fragment changes.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The node with this label, which may be provisional.
    Label(Label),
    /// The node at this path.
    Path(String),
}

/// What the blob of an overlay (`/plugin/`) says: fragments, and the symbols of nodes in them.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    pub(super) fragments: Vec<Fragment>,
    /// The symbols that the overlay defines, and the provisional label of the node.
    pub(super) symbols: Vec<(Label, Label)>,
    /// The symbols of the tree to which it refers.
    pub(super) externals: Vec<Label>,
}

/// The provisional label of a node of the overlay itself.
fn local(number: usize) -> Label {
    Label::provisional(format!("#{number}"))
}

/// The provisional label of a node that the tree must have.
pub(super) fn external(symbol: &Label) -> Label {
    Label::provisional(format!("&{symbol}"))
}

/// The most fragments that an overlay has: dtc makes one of each `&symbol { … }`.
const MAX_FRAGMENTS: usize = 1 << 11;

/// The most nodes that an overlay has; whole boards have a few thousand.
const MAX_NODES: usize = 1 << 14;

impl Plugin {
    /// What the tree of an overlay's blob says.
    pub(super) fn of(mut root: Node) -> Result<Self, OverlayFault> {
        let too_many = |what, limit| Err(OverlayFault::TooMany { what, limit });
        if root.children().len() > MAX_FRAGMENTS {
            return too_many("fragments", MAX_FRAGMENTS);
        }
        if count(&root) > MAX_NODES {
            return too_many("nodes", MAX_NODES);
        }
        let external_fixups = take_child(&mut root, "__fixups__");
        let local_fixups = take_child(&mut root, "__local_fixups__");
        let symbols = take_child(&mut root, "__symbols__");

        let mut fixups = Fixups::default();
        for property in symbols.iter().flat_map(Node::properties) {
            let path = string(&property.value).unwrap_or_default();
            let node = fixups.at(path);
            node.into_iter().for_each(|node| node.symbols.push(Label::new(&property.name)));
        }
        if let Some(local_fixups) = local_fixups {
            fixups.local(&local_fixups, "")?;
        }
        let mut externals = Vec::new();
        for property in external_fixups.iter().flat_map(Node::properties) {
            let symbol = Label::new(&property.name);
            let invalid = |place: &str| OverlayFault::Fixup { place: place.to_owned() };
            let places = property.value.to_bytes().unwrap_or_default();
            for place in strings(&places).ok_or_else(|| invalid(&property.name))? {
                fixups.external(place, &symbol).ok_or_else(|| invalid(place))?;
            }
            externals.push(symbol);
        }
        let mut labels = LocalLabels::default();
        labels.assign(&mut root, Some(&mut fixups));
        fixups.apply(&mut root, "", &labels.phandles)?;
        let fragments = fragments(root)?;
        Ok(Self { fragments, symbols: labels.symbols, externals })
    }
}

/// How many nodes there are in and below a node.
fn count(node: &Node) -> usize {
    node.children().iter().map(count).fold(1, usize::saturating_add)
}

fn fragments(mut root: Node) -> Result<Vec<Fragment>, OverlayFault> {
    let mut fragments = Vec::new();
    for mut node in std::mem::take(root.children_mut()) {
        let Some(mut content) = take_child(&mut node, "__overlay__") else { continue };
        let no_target = || OverlayFault::NoTarget { fragment: node.name().to_owned() };
        let target = match (node.get("target"), node.get("target-path")) {
            (Some(Value::Cells(cells)), _) => match cells.as_slice() {
                [Cell::Ref(label)] => Target::Label(label.clone()),
                _ => return Err(no_target()),
            },
            (None, Some(path)) => Target::Path(string(path).ok_or_else(no_target)?.to_owned()),
            _ => return Err(no_target()),
        };
        content.remove("phandle");
        fragments.push(Fragment { target, content });
    }
    if fragments.is_empty() {
        return Err(OverlayFault::NoFragment);
    }
    Ok(fragments)
}

/// The symbols and references of a node and those below, as a tree of the overlay's shape: so each
/// node and each property is looked at once, however many there are.
#[derive(Default)]
struct Fixups {
    /// The symbols that name the node.
    symbols: Vec<Label>,
    /// The references in its properties, by property and offset in bytes.
    references: BTreeMap<String, BTreeMap<u32, Reference>>,
    children: BTreeMap<String, Fixups>,
}

/// What four bytes of a property stand for.
enum Reference {
    /// The node of the overlay whose phandle they are.
    Local,
    /// The node of the tree with this symbol.
    External(Label),
}

impl Fixups {
    /// The fixups of the node at a path; `None` if that is none, or deeper than trees are.
    fn at(&mut self, path: &str) -> Option<&mut Self> {
        let names = path.strip_prefix('/')?.split('/').filter(|name| !name.is_empty());
        let mut fixups = self;
        for (depth, name) in names.enumerate() {
            if depth >= MAX_DEPTH {
                return None;
            }
            fixups = fixups.children.entry(name.to_owned()).or_default();
        }
        Some(fixups)
    }

    /// Takes in `__local_fixups__`, a tree like the overlay's whose properties hold the offsets at
    /// which the overlay's hold phandles of the overlay.
    fn local(&mut self, offsets: &Node, path: &str) -> Result<(), OverlayFault> {
        for property in offsets.properties() {
            // Not `of_bytes`' guess: offsets can look like text.
            let bytes = property.value.to_bytes().unwrap_or_default();
            let (cells, []) = bytes.as_chunks() else {
                return Err(OverlayFault::Fixup { place: format!("{path}:{}", property.name) });
            };
            let references = self.references.entry(property.name.clone()).or_default();
            let offsets = cells.iter().map(|cell| u32::from_be_bytes(*cell));
            references.extend(offsets.map(|offset| (offset, Reference::Local)));
        }
        for child in offsets.children() {
            let fixups = self.children.entry(child.name().to_owned()).or_default();
            fixups.local(child, &format!("{path}/{}", child.name()))?;
        }
        Ok(())
    }

    /// Takes in a place that `__fixups__` names: `path:property:offset`.
    fn external(&mut self, place: &str, symbol: &Label) -> Option<()> {
        let mut parts = place.rsplitn(3, ':');
        let offset = parts.next()?.parse().ok()?;
        let property = parts.next()?.to_owned();
        let references = &mut self.at(parts.next()?)?.references;
        let reference = Reference::External(external(symbol));
        references.entry(property).or_default().insert(offset, reference);
        Some(())
    }

    /// Puts the references into the node at `path` and those below.
    fn apply(
        mut self,
        node: &mut Node,
        path: &str,
        phandles: &BTreeMap<u32, Label>,
    ) -> Result<(), OverlayFault> {
        if !self.references.is_empty() {
            for (name, value) in node.properties_mut() {
                if let Some(references) = self.references.remove(name) {
                    let place = format!("{path}:{name}");
                    *value = with_references(value, references, phandles, &place)?;
                }
            }
        }
        if let Some((property, offsets)) = self.references.first_key_value() {
            let offset = offsets.keys().next().copied().unwrap_or_default();
            return Err(OverlayFault::Fixup { place: format!("{path}:{property}:{offset}") });
        }
        for child in node.children_mut() {
            if let Some(fixups) = self.children.remove(child.name()) {
                let path = format!("{path}/{}", child.name());
                fixups.apply(child, &path, phandles)?;
            }
        }
        match self.children.iter().find(|(_, fixups)| fixups.has_references()) {
            Some((name, _)) => Err(OverlayFault::Fixup { place: format!("{path}/{name}") }),
            None => Ok(()),
        }
    }

    /// Whether there is a reference here or below. A symbol for a node that isn't there harms only
    /// those who refer to it.
    fn has_references(&self) -> bool {
        !self.references.is_empty() || self.children.values().any(Self::has_references)
    }
}

/// The provisional labels of the overlay's nodes.
#[derive(Default)]
struct LocalLabels {
    /// How many there are.
    count: usize,
    /// The symbols, and the provisional label of the node.
    symbols: Vec<(Label, Label)>,
    /// The provisional labels of nodes by their phandles.
    phandles: BTreeMap<u32, Label>,
}

impl LocalLabels {
    /// Gives each node with a symbol a label, and each with a phandle one in its place.
    fn assign(&mut self, node: &mut Node, mut fixups: Option<&mut Fixups>) {
        let symbols = fixups.as_deref_mut().map(|fixups| std::mem::take(&mut fixups.symbols));
        let phandle = node.take_phandle();
        let symbols = symbols.unwrap_or_default();
        if phandle.is_some() || !symbols.is_empty() {
            let label = local(self.count);
            self.count = self.count.saturating_add(1);
            node.set_label(Some(label.clone()));
            self.symbols.extend(symbols.into_iter().map(|symbol| (symbol, label.clone())));
            self.phandles.extend(phandle.map(|phandle| (phandle, label)));
        }
        for child in node.children_mut() {
            let fixups = fixups.as_deref_mut().and_then(|n| n.children.get_mut(child.name()));
            self.assign(child, fixups);
        }
    }
}

/// The value of the property at `place` with these references in it, each in place of four bytes:
/// cells if that is what it can be, else parts.
fn with_references(
    value: &Value,
    references: BTreeMap<u32, Reference>,
    phandles: &BTreeMap<u32, Label>,
    place: &str,
) -> Result<Value, OverlayFault> {
    let bytes = value.to_bytes().unwrap_or_default();
    let mut labels = BTreeMap::new();
    let mut end = 0;
    for (offset, reference) in references {
        let wrong = || OverlayFault::Fixup { place: format!("{place}:{offset}") };
        let at = usize::try_from(offset).ok().filter(|at| *at >= end).ok_or_else(wrong)?;
        let number = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(wrong)?;
        let phandle = u32::from_be_bytes(*number);
        let label = match reference {
            Reference::External(label) => label,
            Reference::Local => phandles
                .get(&phandle)
                .cloned()
                .ok_or_else(|| OverlayFault::NoPhandle { place: place.to_owned(), phandle })?,
        };
        labels.insert(at, label);
        end = at.saturating_add(4);
    }
    if let (cells, []) = bytes.as_chunks()
        && labels.keys().all(|at| at.is_multiple_of(4))
    {
        let cells = (0_usize..).step_by(4).zip(cells).map(|(at, cell)| match labels.remove(&at) {
            Some(label) => Cell::Ref(label),
            None => Cell::U32(u32::from_be_bytes(*cell)),
        });
        return Ok(Value::Cells(cells.collect()));
    }
    let mut parts = Vec::new();
    let mut done = 0;
    let plain = |range: std::ops::Range<usize>| {
        bytes.get(range).filter(|bytes| !bytes.is_empty()).map(Value::of_bytes)
    };
    for (at, label) in labels {
        parts.extend(plain(done..at));
        parts.push(Value::Cells(vec![Cell::Ref(label)]));
        done = at.saturating_add(4);
    }
    parts.extend(plain(done..bytes.len()));
    Ok(Value::Mixed(parts))
}

fn take_child(node: &mut Node, name: &str) -> Option<Node> {
    let index = node.children().iter().position(|child| child.name() == name)?;
    Some(node.children_mut().remove(index))
}

fn string(value: &Value) -> Option<&str> {
    match value {
        Value::Strings(strings) => match strings.as_slice() {
            [only] => Some(only),
            _ => None,
        },
        _ => None,
    }
}
