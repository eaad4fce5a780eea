//! The guest's device tree node of an assigned device, made from the host's own.
//!
//! Generic: any device's node is copied as far as it has a meaning in the guest. A
//! [binding](super::bindings) then refines the [`Draft`].

mod property;

use std::borrow::Cow;

use boot::fdt::host::{HostError, HostNode, HostTree};
use boot::fdt::{Label, Node, Property, Value};

use self::property::{Fate, fate};
use crate::irq::{Spi, Trigger};

/// Something of the host's node that the guest's doesn't have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The property's or child's name.
    pub name: String,
    /// Why the guest doesn't have it.
    pub reason: Cow<'static, str>,
}

/// A clock of the device; in the guest a `fixed-clock`
/// (Documentation/devicetree/bindings/clock/fixed-clock.yaml).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Its name in `clock-names`.
    pub name: Option<String>,
    /// Its rate in Hz, where known; without, the guest doesn't get it.
    pub rate: Option<u32>,
}

/// The guest's node in the making: all but addresses and interrupts, which the machine's layout
/// decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The node's name without its address.
    pub name: String,
    /// `compatible`, the most specific first.
    pub compatible: Vec<String>,
    /// `clocks` and `clock-names`.
    pub clocks: Vec<Clock>,
    /// `dma-coherent`, as the host has it: a guest that is told wrong reads stale memory.
    pub dma_coherent: bool,
    /// `reg-names`, one for each region.
    pub reg_names: Vec<String>,
    /// `interrupt-names`, one for each interrupt.
    pub interrupt_names: Vec<String>,
    /// The other properties, in order.
    pub properties: Vec<Property>,
    /// Child nodes.
    pub children: Vec<Node>,
    /// What the guest doesn't get.
    pub dropped: Vec<Dropped>,
}

/// What an assigned device adds to the guest's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNodes {
    /// The device.
    pub device: Node,
    /// Its clocks, to which it refers; they belong into the root.
    pub clocks: Vec<Node>,
    /// What the host's node has and the guest's hasn't.
    pub dropped: Vec<Dropped>,
}

impl Draft {
    /// What of the host's node means the same in a guest.
    ///
    /// # Errors
    ///
    /// If the node is malformed. What its clocks refer to may be: they are dropped then.
    pub fn of(tree: &HostTree, host: &HostNode) -> Result<Self, HostError> {
        let strings = |name| {
            let strings = host.strings(name)?.unwrap_or_default();
            Ok::<Vec<String>, HostError>(strings.into_iter().map(str::to_owned).collect())
        };
        let name = host.name().split('@').next().unwrap_or_default();
        let mut draft = Self {
            name: name.to_owned(),
            compatible: strings("compatible")?,
            clocks: Vec::new(),
            dma_coherent: host.has("dma-coherent"),
            reg_names: strings("reg-names")?,
            interrupt_names: strings("interrupt-names")?,
            properties: Vec::new(),
            children: Vec::new(),
            dropped: Vec::new(),
        };
        let clock_names = strings("clock-names")?;
        draft.copy_clocks(tree, host, &clock_names);
        draft.copy_properties(host);
        draft.copy_children(host);
        Ok(draft)
    }

    fn drop_one(&mut self, name: impl Into<String>, reason: impl Into<Cow<'static, str>>) {
        self.dropped.push(Dropped { name: name.into(), reason: reason.into() });
    }

    fn copy_clocks(&mut self, tree: &HostTree, host: &HostNode, names: &[String]) {
        let references = match tree.references(host, "clocks", Some("#clock-cells")) {
            Ok(references) => references,
            Err(error) => return self.drop_one("clocks", format!("unreadable: {error}")),
        };
        let rate = |reference: &Option<_>| {
            let Some(reference) = reference else { return Ok(None) };
            boot::fdt::host::Reference::fixed_clock_rate(reference)
        };
        for (index, reference) in references.iter().enumerate() {
            let rate = rate(reference).unwrap_or_else(|error| {
                log::warn!("a clock of {}: {error}", host.name());
                None
            });
            self.clocks.push(Clock { name: names.get(index).cloned(), rate });
        }
    }

    fn copy_properties(&mut self, host: &HostNode) {
        for property in host.properties() {
            match fate(&property.name) {
                Fate::Kept => self
                    .properties
                    .push(Property { name: property.name.clone(), value: property.value() }),
                Fate::Made => {}
                Fate::Dropped(reason) => self.drop_one(&property.name, reason),
            }
        }
    }

    /// Copies children that are numbered by the device itself; those with addresses of the host's
    /// can't be at the same ones in the guest.
    fn copy_children(&mut self, host: &HostNode) {
        if host.children().is_empty() {
            return;
        }
        if host.has("ranges") {
            for child in host.children() {
                self.drop_one(child.name(), "it is at an address of the host");
            }
            return;
        }
        for cells in ["#address-cells", "#size-cells"] {
            if let Some(property) = host.properties().iter().find(|p| p.name == cells) {
                let value = property.value();
                self.properties.push(Property { name: cells.to_owned(), value });
            }
        }
        for child in host.children() {
            let copy = self.child(child);
            self.children.push(copy);
        }
    }

    fn child(&mut self, host: &HostNode) -> Node {
        let mut node = Node::new(host.name());
        for property in host.properties() {
            let own = matches!(
                property.name.as_str(),
                "compatible" | "reg" | "reg-names" | "status" | "#address-cells" | "#size-cells"
            );
            let reason = match fate(&property.name) {
                Fate::Kept => None,
                Fate::Made if own => None,
                Fate::Made => Some("it refers to the host's nodes"),
                Fate::Dropped(reason) => Some(reason),
            };
            match reason {
                None => node.set(&property.name, property.value()),
                Some(reason) => {
                    self.drop_one(format!("{}/{}", host.name(), property.name), reason);
                }
            }
        }
        let children: Vec<Node> = host.children().iter().map(|child| self.child(child)).collect();
        node.with_children(children)
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
        let address = regions.first().map(|(gpa, _)| *gpa);
        let mut node = match address {
            Some(gpa) => Node::at(&self.name, gpa),
            None => Node::new(&*self.name),
        };
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

        let mut dropped = self.dropped.clone();
        let (mut node, clocks) = self.with_clocks(node, address.unwrap_or(0), &mut dropped);
        if self.dma_coherent {
            node = node.flag("dma-coherent");
        }
        for property in &self.properties {
            node.set(&property.name, property.value.clone());
        }
        GuestNodes { device: node.with_children(self.children.clone()), clocks, dropped }
    }

    fn with_clocks(&self, node: Node, gpa: u64, dropped: &mut Vec<Dropped>) -> (Node, Vec<Node>) {
        let mut clocks = Vec::new();
        let mut names = Vec::new();
        for (index, clock) in self.clocks.iter().enumerate() {
            let Some(rate) = clock.rate else {
                let name = clock.name.clone().unwrap_or_else(|| format!("clock {index}"));
                dropped.push(Dropped { name, reason: "the host's tree has no rate for it".into() });
                continue;
            };
            // Named by the device's address: short, and unlike any other in the guest.
            let name = format!("clock-{gpa:x}-{index}");
            clocks.push(
                Node::new(&*name)
                    .label(Label::new(&name))
                    .string("compatible", "fixed-clock")
                    .u32("#clock-cells", 0)
                    .u32("clock-frequency", rate),
            );
            names.extend(clock.name.clone());
        }
        if clocks.is_empty() {
            return (node, clocks);
        }
        let labels = clocks.iter().filter_map(|clock| clock.get_label().cloned());
        let node = node.refs("clocks", labels);
        // Clocks without names come last, so the names fit those that have one.
        let node = if names.is_empty() { node } else { node.strings("clock-names", names) };
        (node, clocks)
    }
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
