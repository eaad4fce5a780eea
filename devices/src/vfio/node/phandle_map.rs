//! Which of the host's nodes a guest has: those of all the devices that are assigned to it, and of
//! what is below them.
//!
//! They keep their phandles. So whatever property refers to one of them still does, whichever of the
//! devices it is a property of, and also where nobody knows that it holds a phandle.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use boot::fdt::host::{HostError, HostNode, HostTree, Reference};
use boot::fdt::{Cell, Label, is_node_name};
use boot::order;

use super::options::NodeOptions;
use super::path::join;
use super::ranges::{BusScope, ChildRanges};

/// The host's node of a device that is assigned to a guest.
#[derive(Clone, Copy, Debug)]
pub struct HostDeviceNode<'a> {
    /// The node, with everything below.
    pub node: &'a HostNode,
    /// The device's name in sysfs: the node's label is made of it.
    pub name: &'a str,
    /// The options for its node in the guest.
    pub options: &'a NodeOptions,
}

/// The host's nodes that a guest has, by their phandles, which are the same in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PhandleMap {
    nodes: BTreeMap<u32, Entry>,
    /// The devices, by the directories of their nodes.
    devices: BTreeMap<PathBuf, String>,
    /// The host's aliases: their names, and the nodes' paths.
    aliases: Vec<(String, String)>,
}

/// A node that the guest has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    label: Label,
    /// The device that it is, or belongs to.
    device: String,
}

impl PhandleMap {
    /// Of the devices that are assigned to one guest.
    ///
    /// # Errors
    ///
    /// The cells of a device's node are malformed; the device is named.
    pub fn new<'a>(
        tree: &HostTree,
        devices: &[HostDeviceNode<'a>],
    ) -> Result<Self, (&'a str, HostError)> {
        let directories = devices.iter().map(|device| device.node.directory().to_owned());
        let names = devices.iter().map(|device| device.name.to_owned());
        let aliases = tree.aliases().unwrap_or_else(|error| {
            log::warn!("the host's aliases: {error}");
            Vec::new()
        });
        let devices_by_directory = directories.zip(names).collect();
        let mut map = Self { nodes: BTreeMap::new(), devices: devices_by_directory, aliases };
        // Before the nodes below: a device's label is its name's.
        for device in devices {
            map.add(device.node, Label::new(device.name), device.name);
        }
        for device in devices {
            map.add_below_device(tree, device).map_err(|error| (device.name, error))?;
        }
        Ok(map)
    }

    /// The label that the node with this phandle has in the guest, if it is there.
    pub(super) fn label(&self, phandle: u32) -> Option<&Label> {
        self.nodes.get(&phandle).map(|entry| &entry.label)
    }

    /// Whether the guest has the node with this phandle.
    pub(super) fn has(&self, phandle: u32) -> bool {
        self.nodes.contains_key(&phandle)
    }

    /// A reference as the guest has it, if it has the node.
    pub(super) fn cells(&self, reference: &Reference) -> Option<Vec<Cell>> {
        let label = self.label(reference.provider.phandle()?)?;
        let arguments = reference.arguments.iter().copied().map(Cell::U32);
        Some([Cell::Ref(label.clone())].into_iter().chain(arguments).collect())
    }

    /// The host's aliases of the node at this path of its tree and of those below: their names, and
    /// the nodes' paths from there, empty for the node itself.
    pub(super) fn aliases(&self, path: &str) -> Vec<(String, String)> {
        let here = self.aliases.iter().filter_map(|(name, of)| {
            let below = of.strip_prefix(path)?;
            let within = below.is_empty() || below.starts_with('/');
            within.then(|| (name.clone(), below.trim_matches('/').to_owned()))
        });
        here.collect()
    }

    /// The phandle of each label, and the device it belongs to.
    pub(super) fn by_label(&self) -> BTreeMap<&Label, (u32, &str)> {
        let nodes = self.nodes.iter();
        order::map(nodes.map(|(phandle, entry)| (&entry.label, (*phandle, entry.device.as_str()))))
    }

    /// Why a node below a device's, on a bus of this scope, isn't copied with it, if it isn't.
    pub(super) fn refusal(&self, host: &HostNode, scope: &BusScope) -> Option<Cow<'static, str>> {
        if let Some(device) = self.devices.get(host.directory()) {
            return Some(format!("it is {device}, which the guest has beside this device").into());
        }
        if !is_node_name(host.name()) {
            return Some("a blob can't have nodes of this name".into());
        }
        scope.refusal(host).map(Cow::Borrowed)
    }

    fn add(&mut self, host: &HostNode, label: Label, device: &str) {
        if let Some(phandle) = phandle(host) {
            // Where two nodes share one, it is the first's that counts.
            self.nodes.entry(phandle).or_insert_with(|| Entry { label, device: device.to_owned() });
        }
    }

    fn add_below_device(
        &mut self,
        tree: &HostTree,
        device: &HostDeviceNode<'_>,
    ) -> Result<(), HostError> {
        let host = device.node;
        if host.children().is_empty() {
            return Ok(());
        }
        let bus = tree.bus_cells(host)?;
        let reg = host.reg(bus).unwrap_or_default();
        // Where addresses can't be translated, nothing below is copied.
        let Ok(ranges) = ChildRanges::of(host, &reg, bus.address) else { return Ok(()) };
        let scope = BusScope::of_device(host, ranges.as_ref())?;
        self.add_below(host, &Label::new(device.name), "", &scope, device);
        Ok(())
    }

    /// Adds the nodes below `host`, which is at `path` below the device's, under labels of their
    /// paths.
    fn add_below(
        &mut self,
        host: &HostNode,
        label: &Label,
        path: &str,
        scope: &BusScope,
        device: &HostDeviceNode<'_>,
    ) {
        for child in host.children() {
            let path = join(path, child.name());
            if self.refusal(child, scope).is_some() || device.options.drop.contains(&path) {
                continue;
            }
            let label = Label::new(format!("{label}_{}", child.name()));
            // `a-b` and `a_b` are the same as labels.
            let taken = self.nodes.values().any(|other| other.label == label);
            let own = match phandle(child) {
                Some(phandle) if taken => Label::new(format!("{label}_{phandle:x}")),
                _ => label.clone(),
            };
            self.add(child, own, device.name);
            self.add_below(child, &label, &path, &scope.below(child), device);
        }
    }
}

/// The node's phandle, unless it is one of the two that stand for none.
pub(super) fn phandle(host: &HostNode) -> Option<u32> {
    host.phandle().filter(|phandle| !matches!(*phandle, 0 | u32::MAX))
}
