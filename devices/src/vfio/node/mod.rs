//! The guest's device tree node of an assigned device, made from the host's own.
//!
//! Generic: any device's node is copied as far as it has a meaning in the guest. A
//! [binding](super::bindings) then refines the [`Draft`], and a person's [`NodeOptions`] have the
//! last word.

mod account;
mod clock;
mod options;
mod property;
mod subtree;
mod windows;

use std::collections::BTreeMap;
use std::ops::Range;

use boot::fdt::host::{HostError, HostNode, HostTree};
use boot::fdt::{Label, Node, Property, Value, is_node_name};

pub use self::account::{Account, Fate};
pub use self::clock::Clock;
pub use self::options::{NodeError, NodeOptions};

use self::account::Reasons;
use self::property::Kind;
use self::subtree::{Copier, child_clock};
use self::windows::Windows;
use crate::irq::{Spi, Trigger};

/// The guest's node in the making: all but addresses and interrupts, which the machine's layout
/// decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// The node's name without its address.
    pub name: String,
    /// `compatible`, the most specific first.
    pub compatible: Vec<String>,
    /// `clocks` and `clock-names`.
    pub clocks: Vec<Clock>,
    /// `dma-coherent`, as it is on the host: a guest that is told wrong reads stale memory.
    pub dma_coherent: bool,
    /// `reg-names`, one for each region.
    pub reg_names: Vec<String>,
    /// `interrupt-names`, one for each interrupt.
    pub interrupt_names: Vec<String>,
    /// The other properties, in order.
    pub properties: Vec<Property>,
    /// Child nodes.
    pub children: Vec<Node>,
    /// Where its registers are on the host, by physical address, or why that isn't known. None where
    /// they have no addresses of at most 64 bits.
    pub addresses: Vec<Result<Range<u64>, String>>,
    label: Option<Label>,
    phandle: Option<u32>,
    windows: Option<Windows>,
    child_clocks: Vec<(String, Clock)>,
    drop: Vec<String>,
    host: Option<HostNode>,
    inside: BTreeMap<u32, Label>,
    reasons: Reasons,
}

/// What an assigned device adds to the guest's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNodes {
    /// The device.
    pub device: Node,
    /// The clocks to which it refers; they belong into `/clocks`.
    pub clocks: Vec<Node>,
    /// What became of each of the host's properties.
    pub account: Vec<Account>,
}

impl Draft {
    /// Of a device of which no more than this is known.
    pub fn new(name: &str, compatible: &[&str]) -> Self {
        let compatible = compatible.iter().map(|&string| string.to_owned()).collect();
        Self { name: name.to_owned(), compatible, ..Self::default() }
    }

    /// What of the host's node means the same in a guest. `device` is what sysfs calls the device:
    /// the node's label comes of it.
    ///
    /// # Errors
    ///
    /// If the node is malformed. What it refers to may be: it is left out then.
    pub fn of(
        tree: &HostTree,
        host: &HostNode,
        device: &str,
        options: &NodeOptions,
    ) -> Result<Self, HostError> {
        let strings = |name| {
            let strings = host.strings(name)?.unwrap_or_default();
            Ok::<Vec<String>, HostError>(strings.into_iter().map(str::to_owned).collect())
        };
        let label = Label::new(device);
        let reg = host.reg(tree.bus_cells(host)?).unwrap_or_else(|error| {
            log::debug!("{device}: {error}");
            Vec::new()
        });
        let mut copier = Copier::new(tree, host, &label, &options.rates);
        let (windows, children) = children(tree, host, &reg, &mut copier)?;
        let clocks = copier.clocks(host, "");
        let properties = properties(host, &mut copier, !children.is_empty());
        let own_clocks = copier.clocks;
        let mut draft = Self {
            name: name_of(host),
            compatible: strings("compatible")?,
            clocks,
            dma_coherent: tree.is_dma_coherent(host)?,
            reg_names: strings("reg-names")?,
            interrupt_names: strings("interrupt-names")?,
            properties,
            addresses: addresses(tree, host, &reg),
            phandle: subtree::phandle(host),
            windows: windows.filter(|_| !children.is_empty()),
            children,
            child_clocks: own_clocks,
            drop: Vec::new(),
            host: Some(host.clone()),
            inside: copier.inside,
            reasons: copier.reasons,
            label: None,
        };
        draft.label = Some(label);
        draft.note_reasons();
        Ok(draft)
    }

    /// Why the guest has none of what is made anew, where it hasn't.
    fn note_reasons(&mut self) {
        let mut note = |property: &str, reason: &'static str| {
            self.reasons.note("", property, reason);
        };
        note("status", "the guest has the device, so it is there and works");
        note("interrupt-parent", "the guest has one interrupt controller, the root's");
        note("interrupts-extended", "the guest has its interrupts in `interrupts`");
        note("interrupts", "VFIO has no interrupt of it");
        note("interrupt-names", "VFIO has other interrupts");
        note("reg", "VFIO has no region of it");
        note("reg-names", "VFIO has other regions");
        note("ranges", "none of the nodes below has registers of the device");
        note("clock-names", "the guest has no clock with a name");
        for cells in ["#address-cells", "#size-cells"] {
            note(cells, "the guest has none of the nodes below");
        }
    }

    /// Applies what a person says, over what the host and a binding do.
    ///
    /// # Errors
    ///
    /// It names something that isn't there.
    pub fn apply(&mut self, options: &NodeOptions) -> Result<(), NodeError> {
        if let Some(name) = &options.name {
            if !is_node_name(name) || name.contains('@') {
                return Err(NodeError::Name { name: name.clone() });
            }
            self.name.clone_from(name);
        }
        if !options.compatible.is_empty() {
            self.compatible.clone_from(&options.compatible);
        }
        for (wanted, rate) in &options.clock_rates {
            let clocks: Vec<String> = self.named_clocks().map(|(name, _)| name).collect();
            let index = clocks.iter().position(|name| name == wanted);
            let own = self.clocks.len();
            let clock = index.and_then(|index| match index.checked_sub(own) {
                None => self.clocks.get_mut(index),
                Some(below) => self.child_clocks.get_mut(below).map(|(_, clock)| clock),
            });
            let wanted = wanted.clone();
            clock.ok_or(NodeError::NoClock { wanted, clocks })?.rate = Some(*rate);
        }
        self.drop.clone_from(&options.drop);
        Ok(())
    }

    /// Sees that all is known that the guest has to know, and that all is there that a person wants
    /// to be without.
    ///
    /// # Errors
    ///
    /// What isn't.
    pub fn check(&self) -> Result<(), NodeError> {
        let unknown = self.named_clocks().filter(|(name, clock)| {
            let node = name.rsplit_once('/').map_or("", |(node, _)| node);
            !clock.is_known() && !self.is_dropped(node, "clocks")
        });
        let clocks: Vec<String> = unknown.map(|(name, _)| name).collect();
        if !clocks.is_empty() {
            return Err(NodeError::UnknownRates { clocks });
        }
        // With any number of places: what is dropped are names.
        let mut node = self.node(&[(0, 0)], &[(Spi(0), Trigger::Level)]);
        for wanted in &self.drop {
            if !remove(&mut node, wanted) {
                return Err(NodeError::Nothing { wanted: wanted.clone() });
            }
        }
        Ok(())
    }

    /// The clocks by the names that a person gives them.
    fn named_clocks(&self) -> impl Iterator<Item = (String, &Clock)> {
        let named = |path: &str, index: usize, clock: &Clock| {
            let name = clock.name.clone().filter(|name| !name.is_empty());
            account::below(path, &name.unwrap_or_else(|| index.to_string()))
        };
        let own = self.clocks.iter().enumerate();
        let own = own.map(move |(index, clock)| (named("", index, clock), clock));
        let below = self.child_clocks.iter().enumerate().map(move |(at, (path, clock))| {
            let before = self.child_clocks.iter().take(at);
            let index = before.filter(|(other, _)| other == path).count();
            (named(path, index, clock), clock)
        });
        own.chain(below)
    }

    /// Whether a property of a node, or the node, is to be left out.
    fn is_dropped(&self, node: &str, property: &str) -> bool {
        let property = account::below(node, property);
        self.drop.iter().any(|dropped| {
            property == *dropped
                || property.strip_prefix(dropped.as_str()).is_some_and(|rest| rest.starts_with('/'))
        })
    }

    /// Sets a property, in its old place if it is there.
    pub fn set(&mut self, name: &str, value: Value) {
        match self.properties.iter_mut().find(|property| property.name == name) {
            Some(property) => property.value = value,
            None => self.properties.push(Property { name: name.to_owned(), value }),
        }
    }

    /// The finished nodes: `regions` are GPA and size in bytes of each region, `irqs` the SPI of
    /// each interrupt and how it signals, both in VFIO's order, which is that of the host's node.
    ///
    /// Every cell count is that of the guest's root: two for an address and for a size, three for
    /// an interrupt of the GIC (Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml).
    pub fn finish(&self, regions: &[(u64, u64)], irqs: &[(Spi, Trigger)]) -> GuestNodes {
        let mut device = self.node(regions, irqs);
        let mut reasons = self.reasons.clone();
        for dropped in &self.drop {
            remove(&mut device, dropped);
            let (node, property) = dropped.rsplit_once('/').unwrap_or(("", dropped));
            reasons.replace(node, property, format!("drop={dropped}"));
            reasons.replace(dropped, "", format!("drop={dropped}"));
        }
        let own = self.clocks.iter().enumerate();
        let own = own.map(|(index, clock)| (self.clock_label(index), clock));
        let below = self.child_clocks.iter().enumerate();
        let below = below.map(|(n, (_, clock))| (child_clock(&self.device_label(), n), clock));
        // Without those to which nothing refers any more, since a person dropped what did.
        let clocks = own
            .chain(below)
            .filter(|(label, _)| refers(&device, label))
            .filter_map(|(label, clock)| clock.node(&label))
            .collect();
        let account = match &self.host {
            Some(host) => account::account(host, &device, &self.inside, &reasons),
            None => Vec::new(),
        };
        GuestNodes { device, clocks, account }
    }

    fn device_label(&self) -> Label {
        self.label.clone().unwrap_or_else(|| Label::new(&self.name))
    }

    fn clock_label(&self, index: usize) -> Label {
        Label::new(format!("{}_clock{index}", self.device_label()))
    }

    /// The device's node, with all that a person may not want.
    fn node(&self, regions: &[(u64, u64)], irqs: &[(Spi, Trigger)]) -> Node {
        let mut node = match regions.first() {
            Some((gpa, _)) => Node::at(&self.name, *gpa),
            None => Node::new(&*self.name),
        };
        node.set_label(Some(self.device_label()));
        if let Some(phandle) = self.phandle {
            node = node.phandle(phandle);
        }
        node = node.strings("compatible", &self.compatible);
        if !regions.is_empty() {
            node = node.reg(regions.iter().copied());
        }
        node = with_names(node, "reg-names", &self.reg_names, regions.len());
        if !irqs.is_empty() {
            const SPI: u32 = 0;
            let cells = irqs.iter().flat_map(|(spi, trigger)| [SPI, spi.0, trigger.dt_flags()]);
            node = node.cells("interrupts", cells);
        }
        node = with_names(node, "interrupt-names", &self.interrupt_names, irqs.len());
        node = self.with_clocks(node);
        if self.dma_coherent {
            node = node.flag("dma-coherent");
        }
        for property in &self.properties {
            node.set(&property.name, property.value.clone());
        }
        if let Some(windows) = &self.windows {
            let gpas: Vec<u64> = regions.iter().map(|(gpa, _)| *gpa).collect();
            node = node.cells("ranges", windows.cells(&gpas));
        }
        node.with_children(self.children.clone())
    }

    fn with_clocks(&self, node: Node) -> Node {
        if self.clocks.is_empty() {
            return node;
        }
        let clocks = self.clocks.iter().enumerate();
        let cells = clocks.flat_map(|(index, clock)| clock.cells(&self.clock_label(index)));
        let node = node.cells("clocks", cells);
        // Clocks without names come last, so the names fit those that have one.
        let names: Vec<String> = self.clocks.iter().map_while(|clock| clock.name.clone()).collect();
        if names.is_empty() { node } else { node.strings("clock-names", names) }
    }
}

/// The node's name without its address, with what a blob can't have replaced.
fn name_of(host: &HostNode) -> String {
    let name = host.name().split('@').next().unwrap_or_default();
    if is_node_name(name) {
        return name.to_owned();
    }
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    if name.is_empty() { "device".to_owned() } else { name }
}

/// The nodes below the device's that a guest can have, and what of the device's bus is in it.
fn children(
    tree: &HostTree,
    host: &HostNode,
    reg: &[Range<u64>],
    copier: &mut Copier<'_>,
) -> Result<(Option<Windows>, Vec<Node>), HostError> {
    if host.children().is_empty() {
        return Ok((None, Vec::new()));
    }
    match Windows::of(host, reg, tree.bus_cells(host)?.address) {
        Ok(windows) => {
            let covered = windows.as_ref().map(Windows::covered);
            let children = copier.children(host, covered, host.child_cells()?);
            Ok((windows, children))
        }
        Err(error) => {
            log::debug!("{}: the nodes below it are left out: {error}", host.name());
            copier.reasons.note("", "ranges", "its addresses can't be translated");
            for child in host.children() {
                copier.reasons.note(child.name(), "", "its addresses can't be translated");
            }
            Ok((None, Vec::new()))
        }
    }
}

/// The device's own properties that aren't made anew.
fn properties(host: &HostNode, copier: &mut Copier<'_>, has_children: bool) -> Vec<Property> {
    let mut properties = Vec::new();
    for property in host.properties() {
        let cells = matches!(property.name.as_str(), "#address-cells" | "#size-cells");
        let value = match property::kind(&property.name) {
            Kind::Made if cells && has_children => Some(property.value()),
            _ => copier.value(host, "", property),
        };
        properties.extend(value.map(|value| Property { name: property.name.clone(), value }));
    }
    properties
}

/// Where the device's registers are, as the host's CPU addresses them.
fn addresses(
    tree: &HostTree,
    host: &HostNode,
    reg: &[Range<u64>],
) -> Vec<Result<Range<u64>, String>> {
    let translate = |reg: &Range<u64>| {
        let start = tree.translate(host, reg.start).map_err(|error| error.to_string())?;
        Ok(start..start.saturating_add(reg.end.saturating_sub(reg.start)))
    };
    reg.iter().map(translate).collect()
}

/// Removes a property or a node by its path, if it is there.
fn remove(node: &mut Node, path: &str) -> bool {
    if let Some((first, rest)) = path.split_once('/') {
        let child = node.children_mut().iter_mut().find(|child| child.name() == first);
        return child.is_some_and(|child| remove(child, rest));
    }
    if node.remove(path).is_some() {
        return true;
    }
    let children = node.children().len();
    node.children_mut().retain(|child| child.name() != path);
    node.children().len() != children
}

/// Whether a property in or below `node` refers to `label`.
fn refers(node: &Node, label: &Label) -> bool {
    let here = node.properties().iter().any(|property| match &property.value {
        Value::Cells(cells) => {
            cells.iter().any(|cell| matches!(cell, boot::fdt::Cell::Ref(other) if other == label))
        }
        _ => false,
    });
    here || node.children().iter().any(|child| refers(child, label))
}

/// Adds the first `count` names, if there are as many.
fn with_names(node: Node, property: &str, names: &[String], count: usize) -> Node {
    match names.get(..count) {
        Some(names) if count > 0 => node.strings(property, names),
        _ => node,
    }
}

#[cfg(test)]
mod tests;
