//! A blob → fragments, whose references are labels (Linux
//! Documentation/devicetree/dynamic-resolution-notes.rst; dtc Documentation/dt-object-internal.txt).

use std::collections::BTreeMap;

use super::error::OverlayFault;
use crate::fdt::node::{Cell, Label, Node, Value};

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

/// What a blob says: fragments, and the names of nodes in them.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) fragments: Vec<Fragment>,
    /// The symbols that the overlay defines, and the provisional label of the node.
    pub(super) symbols: Vec<(Label, Label)>,
    /// The symbols that it needs.
    pub(super) needs: Vec<Label>,
}

/// The provisional label of a node of the overlay itself.
fn local(number: usize) -> Label {
    Label::provisional(format!("#{number}"))
}

/// The provisional label of a node that the tree must have.
pub(super) fn external(symbol: &Label) -> Label {
    Label::provisional(format!("&{symbol}"))
}

impl Parts {
    /// What the tree of an overlay's blob says.
    pub(super) fn of(mut root: Node) -> Result<Self, OverlayFault> {
        let fixups = take_child(&mut root, "__fixups__");
        let local_fixups = take_child(&mut root, "__local_fixups__");
        let symbols = take_child(&mut root, "__symbols__");

        let mut named = Vec::new();
        for property in symbols.iter().flat_map(Node::properties) {
            let path = string(&property.value).unwrap_or_default();
            // A symbol for a node that isn't there harms only those who refer to it.
            if let Some(node) = find(&mut root, path) {
                let label = label_of(node, named.len());
                named.push((Label::new(&property.name), label));
            }
        }
        let mut count = named.len();
        let mut phandles = BTreeMap::new();
        own_phandles(&mut root, &mut phandles, &mut count);
        if let Some(local_fixups) = local_fixups {
            fix_locally(&mut root, &local_fixups, &phandles, "")?;
        }
        let mut needs = Vec::new();
        for property in fixups.iter().flat_map(Node::properties) {
            let symbol = Label::new(&property.name);
            let places = strings(&property.value)
                .ok_or_else(|| OverlayFault::Fixup { place: property.name.clone() })?;
            for place in places {
                fix(&mut root, &place, &external(&symbol))?;
            }
            needs.push(symbol);
        }
        let fragments = fragments(root)?;
        Ok(Self { fragments, symbols: named, needs })
    }
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

/// Gives every node with a phandle a label instead.
fn own_phandles(node: &mut Node, phandles: &mut BTreeMap<u32, Label>, count: &mut usize) {
    if let Some(phandle) = node.take_phandle() {
        let label = label_of(node, *count);
        *count = count.saturating_add(1);
        phandles.insert(phandle, label);
    }
    for child in node.children_mut() {
        own_phandles(child, phandles, count);
    }
}

/// The node's provisional label: the one it has, or number `number`.
fn label_of(node: &mut Node, number: usize) -> Label {
    if let Some(label) = node.get_label() {
        return label.clone();
    }
    let label = local(number);
    node.set_label(Some(label.clone()));
    label
}

/// Follows `__local_fixups__`, a tree like the overlay's whose properties hold the offsets at which
/// the overlay's hold phandles of the overlay.
fn fix_locally(
    node: &mut Node,
    offsets: &Node,
    phandles: &BTreeMap<u32, Label>,
    path: &str,
) -> Result<(), OverlayFault> {
    for property in offsets.properties() {
        let place = format!("{path}:{}", property.name);
        let wrong = || OverlayFault::Fixup { place: place.clone() };
        // Not `of_bytes`' guess: offsets can look like text.
        let bytes = property.value.to_bytes().unwrap_or_default();
        let (cells, []) = bytes.as_chunks() else { return Err(wrong()) };
        for cell in cells {
            let offset = u32::from_be_bytes(*cell);
            let value = node.get(&property.name).ok_or_else(wrong)?;
            let phandle = number_at(value, offset).ok_or_else(wrong)?;
            let label = phandles.get(&phandle);
            let label =
                label.ok_or_else(|| OverlayFault::NoPhandle { place: place.clone(), phandle })?;
            let value = with_reference(value, offset, label).ok_or_else(wrong)?;
            node.set(&property.name, value);
        }
    }
    for child in offsets.children() {
        let path = format!("{path}/{}", child.name());
        let same = node.children_mut().iter_mut().find(|node| node.name() == child.name());
        let node = same.ok_or_else(|| OverlayFault::Fixup { place: path.clone() })?;
        fix_locally(node, child, phandles, &path)?;
    }
    Ok(())
}

/// Puts a reference at a place that `__fixups__` names: `path:property:offset`.
fn fix(root: &mut Node, place: &str, label: &Label) -> Result<(), OverlayFault> {
    let wrong = || OverlayFault::Fixup { place: place.to_owned() };
    let mut parts = place.rsplitn(3, ':');
    let offset = parts.next().and_then(|offset| offset.parse().ok()).ok_or_else(wrong)?;
    let property = parts.next().ok_or_else(wrong)?;
    let node = parts.next().and_then(|path| find(root, path)).ok_or_else(wrong)?;
    let value = node.get(property).and_then(|value| with_reference(value, offset, label));
    node.set(property, value.ok_or_else(wrong)?);
    Ok(())
}

/// A value as its bytes, and the references among them.
#[derive(Default)]
struct Bytes {
    bytes: Vec<u8>,
    /// By offset; the bytes there mean nothing.
    references: BTreeMap<usize, Label>,
}

impl Bytes {
    fn of(value: &Value) -> Self {
        let mut all = Self::default();
        all.append(value);
        all
    }

    fn append(&mut self, value: &Value) {
        match value {
            Value::Cells(cells) => {
                for cell in cells {
                    let number = match cell {
                        Cell::U32(number) => *number,
                        Cell::Ref(label) => {
                            self.references.insert(self.bytes.len(), label.clone());
                            u32::MAX
                        }
                    };
                    self.bytes.extend(number.to_be_bytes());
                }
            }
            Value::Mixed(parts) => parts.iter().for_each(|part| self.append(part)),
            value => self.bytes.extend(value.to_bytes().unwrap_or_default()),
        }
    }

    /// The four bytes at `offset`.
    fn number(&self, offset: usize) -> Option<u32> {
        self.bytes.get(offset..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
    }

    /// As cells if that is what it can be, else as parts.
    fn value(&self) -> Value {
        let aligned = self.references.keys().all(|offset| offset.is_multiple_of(4));
        if let (cells, []) = self.bytes.as_chunks()
            && aligned
        {
            let cells = cells.iter().enumerate().map(|(index, cell)| {
                match self.references.get(&index.saturating_mul(4)) {
                    Some(label) => Cell::Ref(label.clone()),
                    None => Cell::U32(u32::from_be_bytes(*cell)),
                }
            });
            return Value::Cells(cells.collect());
        }
        let mut parts = Vec::new();
        let mut done = 0;
        let plain = |range: std::ops::Range<usize>, parts: &mut Vec<Value>| {
            parts.extend(self.bytes.get(range).filter(|b| !b.is_empty()).map(Value::of_bytes));
        };
        for (offset, label) in &self.references {
            plain(done..*offset, &mut parts);
            parts.push(Value::Cells(vec![Cell::Ref(label.clone())]));
            done = offset.saturating_add(4);
        }
        plain(done..self.bytes.len(), &mut parts);
        Value::Mixed(parts)
    }
}

/// The number at a byte offset.
fn number_at(value: &Value, offset: u32) -> Option<u32> {
    Bytes::of(value).number(usize::try_from(offset).ok()?)
}

/// The value with a reference in place of the four bytes at `offset`, if those are there and no
/// other reference reaches into them.
fn with_reference(value: &Value, offset: u32, label: &Label) -> Option<Value> {
    let mut bytes = Bytes::of(value);
    let offset = usize::try_from(offset).ok()?;
    bytes.number(offset)?;
    let around = offset.saturating_sub(3)..=offset.saturating_add(3);
    if bytes.references.range(around).any(|(other, _)| *other != offset) {
        return None;
    }
    bytes.references.insert(offset, label.clone());
    Some(bytes.value())
}

fn take_child(node: &mut Node, name: &str) -> Option<Node> {
    let index = node.children().iter().position(|child| child.name() == name)?;
    Some(node.children_mut().remove(index))
}

/// The node at a path of the overlay.
fn find<'a>(root: &'a mut Node, path: &str) -> Option<&'a mut Node> {
    let mut names = path.strip_prefix('/')?.split('/').filter(|name| !name.is_empty());
    names.try_fold(root, |node, name| {
        node.children_mut().iter_mut().find(|child| child.name() == name)
    })
}

fn strings(value: &Value) -> Option<Vec<String>> {
    let bytes = value.to_bytes()?;
    let (0, text) = bytes.split_last()? else { return None };
    let strings = text.split(|byte| *byte == 0);
    strings.map(|string| String::from_utf8(string.to_vec()).ok()).collect()
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
