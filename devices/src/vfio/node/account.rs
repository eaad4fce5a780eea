//! What became of each of the host's properties, found by comparing the host's node with the
//! guest's: so that what is said is what is.

use std::borrow::Cow;
use std::collections::BTreeMap;

use boot::fdt::host::HostNode;
use boot::fdt::{Cell, Label, Node, Value};

/// What became of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The guest has it as the host has it.
    Kept,
    /// The guest has one that says something else.
    Rewritten,
    /// The host has none.
    Made,
    /// The guest has none, for this reason.
    Dropped(Cow<'static, str>),
}

/// A property of the device's node, or of one below it, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The node's path below the device's, empty for the device's own.
    pub node: String,
    /// The property; `None` stands for the whole node with all that it has.
    pub property: Option<String>,
    /// What became of it.
    pub fate: Fate,
}

impl Account {
    /// The property with the node's path before it; a whole node has a `/` behind.
    pub fn path(&self) -> String {
        match (&self.property, self.node.as_str()) {
            (Some(property), "") => property.clone(),
            (Some(property), node) => format!("{node}/{property}"),
            (None, node) => format!("{node}/"),
        }
    }
}

/// Why properties and nodes were left out: by the node's path and the property, which is empty for
/// the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reasons(BTreeMap<(String, String), Cow<'static, str>>);

impl Reasons {
    /// Notes a reason; the first one stays.
    pub(super) fn note(
        &mut self,
        node: &str,
        property: &str,
        reason: impl Into<Cow<'static, str>>,
    ) {
        let place = (node.to_owned(), property.to_owned());
        self.0.entry(place).or_insert_with(|| reason.into());
    }

    /// Notes a reason over others.
    pub(super) fn replace(&mut self, node: &str, property: &str, reason: String) {
        self.0.insert((node.to_owned(), property.to_owned()), reason.into());
    }

    fn find(&self, node: &str, property: &str) -> Cow<'static, str> {
        let place = (node.to_owned(), property.to_owned());
        self.0.get(&place).cloned().unwrap_or(Cow::Borrowed("the guest has no use for it"))
    }
}

/// The path of a node below another one's.
pub(super) fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

/// Accounts for each property of `host` once, and for those that only `guest` has. `inside` are the
/// phandles that the device's own nodes have on both sides.
pub(super) fn account(
    host: &HostNode,
    guest: &Node,
    inside: &BTreeMap<u32, Label>,
    reasons: &Reasons,
) -> Vec<Account> {
    let phandles = inside.iter().map(|(phandle, label)| (label, *phandle)).collect();
    let mut all = Vec::new();
    compare(host, guest, "", &phandles, reasons, &mut all);
    all
}

fn compare(
    host: &HostNode,
    guest: &Node,
    path: &str,
    phandles: &BTreeMap<&Label, u32>,
    reasons: &Reasons,
    all: &mut Vec<Account>,
) {
    let mut push = |property: Option<&str>, node: &str, fate| {
        all.push(Account { node: node.to_owned(), property: property.map(str::to_owned), fate });
    };
    for property in host.properties() {
        let fate = match guest.get(&property.name) {
            Some(value) if bytes(value, phandles).as_ref() == Some(&property.bytes) => Fate::Kept,
            Some(_) => Fate::Rewritten,
            None => Fate::Dropped(reasons.find(path, &property.name)),
        };
        push(Some(&property.name), path, fate);
    }
    for property in guest.properties().iter().filter(|property| !host.has(&property.name)) {
        push(Some(&property.name), path, Fate::Made);
    }
    for child in host.children() {
        let node = below(path, child.name());
        match guest.children().iter().find(|twin| twin.name() == child.name()) {
            Some(twin) => compare(child, twin, &node, phandles, reasons, all),
            None => all.push(Account {
                property: None,
                fate: Fate::Dropped(reasons.find(&node, "")),
                node,
            }),
        }
    }
    let made = |child: &&Node| host.children().iter().all(|twin| twin.name() != child.name());
    for child in guest.children().iter().filter(made) {
        let node = below(path, child.name());
        all.push(Account { node, property: None, fate: Fate::Made });
    }
}

/// The bytes of a value, where it refers to nothing but the device's own nodes.
fn bytes(value: &Value, phandles: &BTreeMap<&Label, u32>) -> Option<Vec<u8>> {
    let Value::Cells(cells) = value else { return value.to_bytes() };
    let cells = cells.iter().map(|cell| match cell {
        Cell::U32(number) => Some(number.to_be_bytes()),
        Cell::Ref(label) => phandles.get(label).map(|phandle| phandle.to_be_bytes()),
    });
    Some(cells.collect::<Option<Vec<_>>>()?.concat())
}
