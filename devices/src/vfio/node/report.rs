//! What became of each of the host's properties. It is found by comparing the host's node with the
//! guest's, so that the report is true whatever made the guest's.

use std::borrow::Cow;
use std::collections::BTreeMap;

use boot::fdt::host::HostNode;
use boot::fdt::{Cell, Label, Node, Value};
use boot::order;
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::path::join;
use super::phandle_map::PhandleMap;

/// What became of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The guest has the host's value.
    Kept,
    /// The guest has the host's value, which refers to these other devices, assigned to it too.
    Linked(Vec<String>),
    /// The guest has another value.
    Rewritten,
    /// The guest has it, and the host hasn't.
    Made,
    /// The guest hasn't it, for this reason.
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
        join(&self.node, self.property.as_deref().unwrap_or_default())
    }
}

/// Its path, its disposition, and the reason for it.
impl Serialize for PropertyReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("PropertyReport", 3)?;
        fields.serialize_field("path", &self.path())?;
        fields.serialize_field("disposition", self.disposition.name())?;
        fields.serialize_field("reason", &self.disposition.reason())?;
        fields.end()
    }
}

impl Disposition {
    /// In a word: `kept`, `rewritten`, `made` or `dropped`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kept | Self::Linked(_) => "kept",
            Self::Rewritten => "rewritten",
            Self::Made => "made",
            Self::Dropped(_) => "dropped",
        }
    }

    /// Why, where that isn't plain.
    pub fn reason(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Linked(devices) => Some(Cow::Owned(format!(
                "it refers to {}, which the guest has too",
                devices.join(", ")
            ))),
            Self::Dropped(reason) => Some(Cow::Borrowed(reason)),
            Self::Kept | Self::Rewritten | Self::Made => None,
        }
    }
}

/// Why properties and nodes are dropped, by their [paths](PropertyReport::path).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reasons(BTreeMap<String, Cow<'static, str>>);

impl Reasons {
    /// Notes why a property is dropped, or with an empty `property` the node. The first reason stays.
    pub(super) fn note(
        &mut self,
        node: &str,
        property: &str,
        reason: impl Into<Cow<'static, str>>,
    ) {
        self.0.entry(join(node, property)).or_insert_with(|| reason.into());
    }

    /// Notes that an option drops the property or the node at this path.
    pub(super) fn note_option(&mut self, path: &str) {
        let reason: Cow<'static, str> = format!("drop={path}").into();
        self.0.insert(format!("{path}/"), reason.clone());
        self.0.insert(path.to_owned(), reason);
    }

    fn find(&self, node: &str, property: &str) -> Cow<'static, str> {
        let reason = self.0.get(&join(node, property));
        reason.cloned().unwrap_or(Cow::Borrowed("the guest has no use for it"))
    }
}

/// Reports each property of `host` once, and those that only `guest` has. `device` is the device's
/// name in sysfs.
pub(super) fn compare(
    device: &str,
    host: &HostNode,
    guest: &Node,
    phandles: &PhandleMap,
    reasons: &Reasons,
) -> Vec<PropertyReport> {
    let phandles = phandles.by_label();
    let mut comparison = Comparison { device, phandles, reasons, reports: Vec::new() };
    comparison.compare(host, guest, "");
    comparison.reports
}

struct Comparison<'a> {
    device: &'a str,
    /// The phandle of each label, and the device it belongs to.
    phandles: BTreeMap<&'a Label, (u32, &'a str)>,
    reasons: &'a Reasons,
    reports: Vec<PropertyReport>,
}

impl Comparison<'_> {
    fn compare(&mut self, host: &HostNode, guest: &Node, path: &str) {
        for property in host.properties() {
            let disposition = match guest.get(&property.name) {
                Some(value) if self.bytes(value).as_ref() == Some(&property.bytes) => {
                    self.kept(value)
                }
                Some(_) => Disposition::Rewritten,
                None => Disposition::Dropped(self.reasons.find(path, &property.name)),
            };
            self.add(path, Some(&property.name), disposition);
        }
        for property in guest.properties().iter().filter(|property| !host.has(&property.name)) {
            self.add(path, Some(&property.name), Disposition::Made);
        }
        for child in host.children() {
            let node = join(path, child.name());
            match guest.children().iter().find(|twin| twin.name() == child.name()) {
                Some(twin) => self.compare(child, twin, &node),
                None => self.add(&node, None, Disposition::Dropped(self.reasons.find(&node, ""))),
            }
        }
        let made = |child: &&Node| host.children().iter().all(|twin| twin.name() != child.name());
        for child in guest.children().iter().filter(made) {
            self.add(&join(path, child.name()), None, Disposition::Made);
        }
    }

    fn add(&mut self, node: &str, property: Option<&str>, disposition: Disposition) {
        let property = property.map(str::to_owned);
        self.reports.push(PropertyReport { node: node.to_owned(), property, disposition });
    }

    /// The bytes of a value, if it refers to nothing but the host's nodes that the guest has.
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
        let others = order::set(owners.filter(|device| *device != self.device));
        if others.is_empty() {
            return Disposition::Kept;
        }
        Disposition::Linked(others.into_iter().map(str::to_owned).collect())
    }
}
