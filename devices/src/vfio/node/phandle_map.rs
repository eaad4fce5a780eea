//! Which of the host's nodes a guest has: those of all the devices that it is given, and of what is
//! below them.
//!
//! They keep their phandles. So whatever property names one of them still does, whichever of the
//! devices it is a property of, and also where nobody knows that it holds a phandle.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use boot::fdt::host::{HostError, HostNode, HostTree};
use boot::fdt::{Label, is_node_name};

use super::options::NodeOptions;
use super::ranges::{Place, Windows};
use super::report::below;

/// A device that is given to a guest, as far as its node is concerned.
#[derive(Clone, Copy, Debug)]
pub struct HostDeviceNode<'a> {
    /// Its node on the host, with everything below.
    pub node: &'a HostNode,
    /// What sysfs calls it: its node's label comes of it.
    pub name: &'a str,
    /// What a person says of its node.
    pub options: &'a NodeOptions,
}

/// The nodes that a guest has of the host's, whose phandles mean the same in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PhandleMap {
    /// By phandle.
    nodes: BTreeMap<u32, Copy>,
    /// The devices, by the directories of their nodes.
    devices: BTreeMap<PathBuf, String>,
    /// The host's aliases: their names, and the nodes' paths.
    aliases: Vec<(String, String)>,
}

/// A node that the guest has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Copy {
    label: Label,
    /// The device that it is, or belongs to.
    device: String,
}

impl PhandleMap {
    /// Of the devices that one guest is given.
    ///
    /// # Errors
    ///
    /// The cells of a device's node are malformed; the device is named.
    pub fn of<'a>(
        tree: &HostTree,
        given: &[HostDeviceNode<'a>],
    ) -> Result<Self, (&'a str, HostError)> {
        let directory = |given: &HostDeviceNode<'_>| given.node.directory().to_owned();
        let devices = given.iter().map(|device| (directory(device), device.name.to_owned()));
        let devices = devices.collect();
        let aliases = tree.aliases().unwrap_or_else(|error| {
            log::warn!("the host's aliases: {error}");
            Vec::new()
        });
        let mut phandles = Self { nodes: BTreeMap::new(), devices, aliases };
        // Before the nodes below: a device's label is its name's.
        for device in given {
            phandles.add(device.node, Label::new(device.name), device.name);
        }
        for device in given {
            phandles.add_below_device(tree, device).map_err(|error| (device.name, error))?;
        }
        Ok(phandles)
    }

    /// The label that the node with this phandle has in the guest, if it is there.
    pub(super) fn label(&self, phandle: u32) -> Option<&Label> {
        self.nodes.get(&phandle).map(|copy| &copy.label)
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

    /// Whether the guest has the node with this phandle.
    pub(super) fn has(&self, phandle: u32) -> bool {
        self.nodes.contains_key(&phandle)
    }

    /// The phandle of each label, and the device it belongs to.
    pub(super) fn by_label(&self) -> BTreeMap<&Label, (u32, &str)> {
        let nodes = self.nodes.iter();
        nodes.map(|(phandle, copy)| (&copy.label, (*phandle, copy.device.as_str()))).collect()
    }

    /// Why a node below a device's, at this place, isn't copied with it, if it isn't.
    pub(super) fn refusal(&self, host: &HostNode, place: &Place) -> Option<Cow<'static, str>> {
        if let Some(device) = self.devices.get(host.directory()) {
            return Some(format!("it is {device}, which the guest has beside this device").into());
        }
        if !is_node_name(host.name()) {
            return Some("a blob can't have nodes of this name".into());
        }
        place.refusal(host).map(Cow::Borrowed)
    }

    fn add(&mut self, host: &HostNode, label: Label, device: &str) {
        if let Some(phandle) = phandle(host) {
            // Where two nodes share one, it is the first's that counts.
            self.nodes.entry(phandle).or_insert_with(|| Copy { label, device: device.to_owned() });
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
        let Ok(windows) = Windows::of(host, &reg, bus.address) else { return Ok(()) };
        let place = Place::in_device(host, windows.as_ref())?;
        self.add_below(host, &Label::new(device.name), "", &place, device);
        Ok(())
    }

    /// Adds the nodes below `host`, which is at `path` below the device's, under labels of their
    /// paths.
    fn add_below(
        &mut self,
        host: &HostNode,
        label: &Label,
        path: &str,
        place: &Place,
        device: &HostDeviceNode<'_>,
    ) {
        for child in host.children() {
            let path = below(path, child.name());
            if self.refusal(child, place).is_some() || device.options.drop.contains(&path) {
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
            self.add_below(child, &label, &path, &place.below(child), device);
        }
    }
}

/// The node's phandle, unless it is one of the two that stand for none.
pub(super) fn phandle(host: &HostNode) -> Option<u32> {
    host.phandle().filter(|phandle| !matches!(*phandle, 0 | u32::MAX))
}
