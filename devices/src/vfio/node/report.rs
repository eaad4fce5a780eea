//! What became of each of the host's properties, found by comparing the host's node with the
//! guest's: so that what is said is what is.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use boot::fdt::host::HostNode;
use boot::fdt::{Cell, Label, Node, Value};

use super::phandle_map::PhandleMap;

/// What became of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The guest has it as the host has it.
    Kept,
    /// The guest has it as the host has it, and it refers to these other devices, which the guest
    /// has too.
    Linked(Vec<String>),
    /// The guest has one that says something else.
    Rewritten,
    /// The host has none.
    Made,
    /// The guest has none, for this reason.
    Dropped(Cow<'static, str>),
}

/// A property of the device's node, or of one below it, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PropertyReport {
    /// The node's path below the device's, empty for the device's own.
    pub node: String,
    /// The property; `None` stands for the whole node with all that it has.
    pub property: Option<String>,
    /// What became of it.
    pub disposition: Disposition,
}

impl PropertyReport {
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

/// Accounts for each property of `host` once, and for those that only `guest` has. `device` is what
/// sysfs calls the device, `phandles` are the host's nodes that have their phandles on both sides.
pub(super) fn report(
    device: &str,
    host: &HostNode,
    guest: &Node,
    phandles: &PhandleMap,
    reasons: &Reasons,
) -> Vec<PropertyReport> {
    let mut auditor = Auditor { device, phandles: phandles.by_label(), reasons, all: Vec::new() };
    auditor.compare(host, guest, "");
    auditor.all
}

/// Compares the host's node with the guest's.
struct Auditor<'a> {
    device: &'a str,
    /// The phandle of each label, and the device it belongs to.
    phandles: BTreeMap<&'a Label, (u32, &'a str)>,
    reasons: &'a Reasons,
    all: Vec<PropertyReport>,
}

impl Auditor<'_> {
    fn compare(&mut self, host: &HostNode, guest: &Node, path: &str) {
        for property in host.properties() {
            let disposition = match guest.get(&property.name) {
                Some(value) if self.bytes(value).as_ref() == Some(&property.bytes) => {
                    self.kept(value)
                }
                Some(_) => Disposition::Rewritten,
                None => Disposition::Dropped(self.reasons.find(path, &property.name)),
            };
            self.note(path, Some(&property.name), disposition);
        }
        for property in guest.properties().iter().filter(|property| !host.has(&property.name)) {
            self.note(path, Some(&property.name), Disposition::Made);
        }
        for child in host.children() {
            let node = below(path, child.name());
            match guest.children().iter().find(|twin| twin.name() == child.name()) {
                Some(twin) => self.compare(child, twin, &node),
                None => self.note(&node, None, Disposition::Dropped(self.reasons.find(&node, ""))),
            }
        }
        let made = |child: &&Node| host.children().iter().all(|twin| twin.name() != child.name());
        for child in guest.children().iter().filter(made) {
            self.note(&below(path, child.name()), None, Disposition::Made);
        }
    }

    fn note(&mut self, node: &str, property: Option<&str>, disposition: Disposition) {
        let property = property.map(str::to_owned);
        self.all.push(PropertyReport { node: node.to_owned(), property, disposition });
    }

    /// The bytes of a value, where it refers to nothing but phandles of the host's nodes.
    fn bytes(&self, value: &Value) -> Option<Vec<u8>> {
        let Value::Cells(cells) = value else { return value.to_bytes() };
        let cells = cells.iter().map(|cell| match cell {
            Cell::U32(number) => Some(number.to_be_bytes()),
            Cell::Ref(label) => self.phandles.get(label).map(|(phandle, _)| phandle.to_be_bytes()),
        });
        Some(cells.collect::<Option<Vec<_>>>()?.concat())
    }

    /// The disposition of a value that is the host's.
    fn kept(&self, value: &Value) -> Disposition {
        let Value::Cells(cells) = value else { return Disposition::Kept };
        let owners = cells.iter().filter_map(|cell| match cell {
            Cell::Ref(label) => self.phandles.get(label).map(|(_, device)| *device),
            Cell::U32(_) => None,
        });
        let others: BTreeSet<&str> = owners.filter(|device| *device != self.device).collect();
        match others.into_iter().map(str::to_owned).collect::<Vec<_>>() {
            others if others.is_empty() => Disposition::Kept,
            others => Disposition::Linked(others),
        }
    }
}
