//! Overlays: changes to the finished tree that a person asks for.
//!
//! Compiled overlays (DTBO) as `dtc -@` makes them. The tree refers by labels, so an overlay's
//! phandles become labels too and need no numbers until the tree is written: whatever an overlay
//! brings, no two nodes share a phandle. A label of the tree is a symbol to the overlay
//! (`&gic`), and so are the symbols of the overlays before it.

mod error;
mod fragment;

use std::collections::BTreeMap;
use std::fmt;

use crate::order;

pub use error::{OverlayError, OverlayFault};

use self::fragment::{Fragment, Plugin, Target, external};
use super::node::Node;
use super::read::from_blob;
use super::value::{Cell, Label, Value};

/// An overlay, read and understood.
#[derive(Clone, Debug)]
pub struct Overlay {
    name: String,
    plugin: Plugin,
}

impl Overlay {
    /// The overlay in a blob; `name` is what errors call it, such as the file's path.
    ///
    /// # Errors
    ///
    /// It is no device tree blob, or no overlay.
    pub fn read(name: impl Into<String>, blob: &[u8]) -> Result<Self, OverlayError> {
        let name = name.into();
        let plugin = from_blob(blob).map_err(OverlayFault::from).and_then(Plugin::of);
        match plugin {
            Ok(plugin) => Ok(Self { name, plugin }),
            Err(fault) => Err(fault.of(&name)),
        }
    }
}

/// Applies overlays to a tree, one after another.
///
/// A fragment's properties replace those of its target, its nodes are merged with those of the same
/// name, or added.
///
/// What they say without effect is returned.
///
/// # Errors
///
/// An overlay refers to a node that the tree doesn't have.
pub fn apply(root: &mut Node, overlays: &[Overlay]) -> Result<Vec<NoEffect>, OverlayError> {
    let mut without_effect = Vec::new();
    if overlays.is_empty() {
        return Ok(without_effect);
    }
    let mut symbols = BTreeMap::new();
    collect(root, &mut symbols);
    for (number, overlay) in overlays.iter().enumerate() {
        // The first of a node's symbols is the one that it gets as a label.
        let names = overlay.plugin.symbols.iter().rev();
        let mut merge = Merge {
            symbols: &mut symbols,
            names: order::map(names.map(|(symbol, label)| (label, symbol))),
            number,
            numbered: 0,
            provisional: BTreeMap::new(),
            without_effect: Vec::new(),
        };
        merge.overlay(root, &overlay.plugin).map_err(|fault| fault.of(&overlay.name))?;
        let places = merge.without_effect.into_iter();
        without_effect.extend(places.map(|node| NoEffect { name: overlay.name.clone(), node }));
    }
    Ok(without_effect)
}

/// A node of an overlay that changes nothing: dtc leaves no more than this of `/delete-property/` and
/// `/delete-node/`, which a compiled overlay can't hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoEffect {
    /// What the overlay was called when it was read.
    pub name: String,
    /// The node, such as `&gic` or `/clocks/osc`.
    pub node: String,
}

impl fmt::Display for NoEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, node } = self;
        write!(
            f,
            "the device tree overlay {name} changes nothing of {node}: /delete-property/ and \
             /delete-node/ are lost when an overlay is compiled; what a device's node is to be \
             without, --vfio-platform NAME,drop=PROPERTY-OR-NODE leaves out"
        )
    }
}

/// The label by which the tree refers to a node, by each symbol of that node.
type Symbols = BTreeMap<Label, Label>;

fn collect(node: &Node, symbols: &mut Symbols) {
    symbols.extend(node.get_label().map(|label| (label.clone(), label.clone())));
    node.children().iter().for_each(|child| collect(child, symbols));
}

/// One overlay that is being merged into the tree.
struct Merge<'a> {
    symbols: &'a mut Symbols,
    /// The symbol of each of the overlay's provisional labels.
    names: BTreeMap<&'a Label, &'a Label>,
    /// Which overlay it is.
    number: usize,
    /// How many labels were tried for nodes without a symbol.
    numbered: usize,
    /// The labels that the overlay's provisional ones became.
    provisional: BTreeMap<Label, Label>,
    /// The nodes that change nothing.
    without_effect: Vec<String>,
}

impl Merge<'_> {
    fn overlay(&mut self, root: &mut Node, plugin: &Plugin) -> Result<(), OverlayFault> {
        for symbol in &plugin.externals {
            let known =
                self.symbols.get(symbol).cloned().ok_or_else(|| OverlayFault::NoSymbol {
                    symbol: symbol.to_string(),
                    known: self.symbols.keys().map(Label::to_string).collect(),
                })?;
            self.provisional.insert(external(symbol), known);
        }
        for fragment in &plugin.fragments {
            let target = self.target(root, fragment)?;
            let place = match &fragment.target {
                Target::Path(path) => path.clone(),
                Target::Label(label) => {
                    format!("&{}", self.provisional.get(label).unwrap_or(label))
                }
            };
            self.node(target, &fragment.content, &place);
        }
        for (symbol, label) in &plugin.symbols {
            if let Some(label) = self.provisional.get(label) {
                self.symbols.insert(symbol.clone(), label.clone());
            }
        }
        self.resolve(root, plugin)
    }

    /// The node that a fragment changes.
    fn target<'n>(
        &self,
        root: &'n mut Node,
        fragment: &Fragment,
    ) -> Result<&'n mut Node, OverlayFault> {
        match &fragment.target {
            Target::Path(path) => {
                at_path(root, path).ok_or_else(|| OverlayFault::NoPath { path: path.clone() })
            }
            Target::Label(label) => {
                let outside = || OverlayFault::Outside { symbol: label.to_string() };
                let label = self.provisional.get(label).ok_or_else(outside)?;
                labelled(root, label).ok_or_else(outside)
            }
        }
    }

    /// Merges `change` into `node`, which is at this place.
    fn node(&mut self, node: &mut Node, change: &Node, place: &str) {
        let nothing = change.properties().is_empty() && change.children().is_empty();
        if nothing && change.get_label().is_none() {
            self.without_effect.push(place.to_owned());
        }
        if let Some(provisional) = change.get_label() {
            let label = match node.get_label() {
                Some(label) => label.clone(),
                None => self.label(provisional),
            };
            self.provisional.insert(provisional.clone(), label.clone());
            node.set_label(Some(label));
        }
        node.set_properties(change.properties());
        for child in change.children() {
            let place = format!("{}/{}", place.trim_end_matches('/'), child.name());
            match node.children_mut().iter_mut().find(|other| other.name() == child.name()) {
                Some(same) => self.node(same, child, &place),
                None => {
                    let mut new = Node::new(child.name());
                    let without_effect = self.without_effect.len();
                    self.node(&mut new, child, &place);
                    // That it is there is an effect.
                    self.without_effect.truncate(without_effect);
                    node.children_mut().push(new);
                }
            }
        }
    }

    /// A label for a node that had none: its symbol, if that is still free.
    fn label(&mut self, provisional: &Label) -> Label {
        let symbol = self.names.get(provisional).copied();
        let label = match symbol.filter(|symbol| !self.symbols.contains_key(*symbol)) {
            Some(symbol) => symbol.clone(),
            None => loop {
                let label = Label::new(format!("overlay{}_{}", self.number, self.numbered));
                self.numbered = self.numbered.saturating_add(1);
                if !self.symbols.contains_key(&label) {
                    break label;
                }
            },
        };
        self.symbols.insert(label.clone(), label.clone());
        label
    }

    /// Turns provisional labels in references into the nodes' own.
    fn resolve(&self, node: &mut Node, plugin: &Plugin) -> Result<(), OverlayFault> {
        node.values_mut().try_for_each(|value| self.resolve_value(value, plugin))?;
        node.children_mut().iter_mut().try_for_each(|child| self.resolve(child, plugin))
    }

    fn resolve_value(&self, value: &mut Value, plugin: &Plugin) -> Result<(), OverlayFault> {
        match value {
            Value::Cells(cells) => {
                for cell in cells {
                    let Cell::Ref(label) = cell else { continue };
                    match self.provisional.get(label) {
                        Some(resolved) => *label = resolved.clone(),
                        // A node that has a phandle, but isn't part of any fragment.
                        None if label.as_str().starts_with('#') => {
                            let name = plugin.symbols.iter().find(|(_, l)| l == label);
                            let symbol =
                                name.map_or_else(|| label.to_string(), |(s, _)| s.to_string());
                            return Err(OverlayFault::Outside { symbol });
                        }
                        None => {}
                    }
                }
                Ok(())
            }
            Value::Mixed(values) => {
                values.iter_mut().try_for_each(|v| self.resolve_value(v, plugin))
            }
            Value::Empty | Value::Strings(_) | Value::Bytes(_) => Ok(()),
        }
    }
}

/// The node at a path; a name without its unit address stands for the first that has one.
fn at_path<'a>(root: &'a mut Node, path: &str) -> Option<&'a mut Node> {
    let mut names = path.strip_prefix('/')?.split('/').filter(|name| !name.is_empty());
    names.try_fold(root, |node, name| {
        let exact = node.children().iter().position(|child| child.name() == name);
        let index = exact.or_else(|| {
            let base = |child: &Node| child.name().split('@').next() == Some(name);
            node.children().iter().position(base)
        });
        node.children_mut().get_mut(index?)
    })
}

/// The node with this label.
fn labelled<'a>(node: &'a mut Node, label: &Label) -> Option<&'a mut Node> {
    if node.get_label() == Some(label) {
        return Some(node);
    }
    node.children_mut().iter_mut().find_map(|child| labelled(child, label))
}
