//! The device's own nodes: what of their properties and of the nodes below means the same in a
//! guest.
//!
//! They keep their phandles. So whatever property names one of them still does, also where nobody
//! knows that it holds a phandle.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use boot::fdt::host::{BusCells, HostNode, HostProperty, HostTree};
use boot::fdt::{Cell, Label, Node, Value, is_node_name, is_property_name};

use super::account::{Reasons, below};
use super::clock::{self, Clock};
use super::property::{Kind, kind};
use super::windows;

/// Copies nodes, noting what it leaves out.
pub(super) struct Copier<'a> {
    tree: &'a HostTree,
    /// The directory with the rates of the host's clocks.
    rates: &'a Path,
    /// The device's label, with which others begin.
    label: &'a Label,
    /// The phandles of the device's nodes.
    pub(super) inside: BTreeMap<u32, Label>,
    /// Why properties and nodes were left out.
    pub(super) reasons: Reasons,
    /// The clocks of nodes below the device's, and those nodes' paths.
    pub(super) clocks: Vec<(String, Clock)>,
}

/// What a node's place means for those below.
#[derive(Clone)]
struct Place {
    /// The addresses of the bus that are in the guest; `None` where they are the device's own, such
    /// as those of an SPI bus.
    covered: Option<Vec<Range<u64>>>,
    /// The cells of the bus.
    cells: BusCells,
    /// Interrupts go to a controller among the device's nodes.
    interrupts: bool,
}

/// The label of the clock of this number of a node below the device's.
pub(super) fn child_clock(device: &Label, number: usize) -> Label {
    Label::new(format!("{device}_child_clock{number}"))
}

impl<'a> Copier<'a> {
    /// For the device `host` and what is below.
    pub(super) fn new(
        tree: &'a HostTree,
        host: &HostNode,
        label: &'a Label,
        rates: &'a Path,
    ) -> Self {
        let mut inside = BTreeMap::new();
        inside.extend(phandle(host).map(|phandle| (phandle, label.clone())));
        name_below(host, label, &mut inside);
        let (reasons, clocks) = Default::default();
        Self { tree, rates, label, inside, reasons, clocks }
    }

    /// The clocks of a node.
    pub(super) fn clocks(&mut self, host: &HostNode, path: &str) -> Vec<Clock> {
        clock::of(self.tree, host, &self.inside, self.rates).unwrap_or_else(|error| {
            for property in ["clocks", "clock-names"] {
                self.reasons.note(path, property, format!("unreadable: {error}"));
            }
            Vec::new()
        })
    }

    /// The value that a property has in the guest; `None` if it is left out, or made otherwise.
    pub(super) fn value(
        &mut self,
        host: &HostNode,
        path: &str,
        property: &HostProperty,
    ) -> Option<Value> {
        let name = property.name.as_str();
        if !is_property_name(name) {
            self.reasons.note(path, name, "a blob can't have properties of this name");
            return None;
        }
        let result = match kind(name) {
            Kind::Plain => Ok(property.value()),
            Kind::Made => return None,
            Kind::Never(reason) => Err(reason.to_owned()),
            // A line that the GPIO controller above holds: numbers without its phandle
            // (Documentation/devicetree/bindings/gpio/gpio.txt, "gpio-hog").
            Kind::List(..) if name == "gpios" && host.has("gpio-hog") => Ok(property.value()),
            Kind::List(count, reason) => self.list(host, name, count, reason),
            Kind::Groups(cells, reason) => self.groups(property, cells, reason),
            Kind::Phandles(reason) => self.phandles(property, reason, true),
            Kind::Likely(reason) => self.phandles(property, reason, false),
            Kind::With(other) => {
                let with = host.properties().iter().find(|p| p.name == other);
                match with.map(|with| self.value(host, path, with)) {
                    Some(None) => Err(format!("it goes with {other}")),
                    Some(Some(_)) | None => Ok(property.value()),
                }
            }
        };
        result.map_err(|reason| self.reasons.note(path, name, reason)).ok()
    }

    /// A list of references with arguments.
    fn list(
        &self,
        host: &HostNode,
        name: &str,
        count: &str,
        reason: &str,
    ) -> Result<Value, String> {
        let references =
            self.tree.references(host, name, Some(count)).map_err(|_| reason.to_owned())?;
        let mut cells = Vec::new();
        for reference in references {
            let Some(reference) = reference else {
                cells.push(Cell::U32(0));
                continue;
            };
            let own = reference.provider.phandle().and_then(|phandle| self.inside.get(&phandle));
            let label = own.ok_or_else(|| self.leads_to(&reference.provider, reason))?;
            cells.push(Cell::Ref(label.clone()));
            cells.extend(reference.arguments.into_iter().map(Cell::U32));
        }
        Ok(if cells.is_empty() { Value::Empty } else { Value::Cells(cells) })
    }

    /// Phandles, each followed by as many cells.
    fn groups(
        &self,
        property: &HostProperty,
        arguments: usize,
        reason: &str,
    ) -> Result<Value, String> {
        let (cells, _) = property.bytes.as_chunks();
        let cells: Vec<u32> = cells.iter().map(|cell| u32::from_be_bytes(*cell)).collect();
        let mut own = Vec::with_capacity(cells.len());
        for group in cells.chunks(arguments.saturating_add(1)) {
            let (phandle, rest) = group.split_first().ok_or_else(|| reason.to_owned())?;
            let label = self.inside.get(phandle).ok_or_else(|| reason.to_owned())?;
            own.push(Cell::Ref(label.clone()));
            own.extend(rest.iter().map(|cell| Cell::U32(*cell)));
        }
        Ok(if own.is_empty() { property.value() } else { Value::Cells(own) })
    }

    /// Phandles among other cells, the first of which is one, surely or only if a node has it.
    fn phandles(
        &self,
        property: &HostProperty,
        reason: &str,
        surely: bool,
    ) -> Result<Value, String> {
        let (cells, []) = property.bytes.as_chunks() else { return Ok(property.value()) };
        let cells: Vec<u32> = cells.iter().map(|cell| u32::from_be_bytes(*cell)).collect();
        let outside = |phandle: &u32| {
            let node = self.tree.by_phandle(*phandle).ok().flatten();
            node.filter(|_| !self.inside.contains_key(phandle))
        };
        let Some(first) = cells.first() else { return Ok(property.value()) };
        if let Some(node) = outside(first) {
            return Err(self.leads_to(&node, reason));
        }
        if !self.inside.contains_key(first) {
            let nowhere = || format!("{reason} (its phandle {first:#x} leads nowhere)");
            return if surely { Err(nowhere()) } else { Ok(property.value()) };
        }
        // A list of nothing but phandles is one whole.
        let nodes: Vec<_> = cells.iter().map(outside).collect();
        let known = |cell: &u32, node: &Option<_>| {
            *cell == 0 || node.is_some() || self.inside.contains_key(cell)
        };
        let is_list = cells.iter().zip(&nodes).all(|(cell, node)| known(cell, node));
        if let Some(node) = nodes.into_iter().flatten().next().filter(|_| is_list) {
            return Err(self.leads_to(&node, reason));
        }
        let cells = cells.iter().enumerate().map(|(index, cell)| {
            match self.inside.get(cell).filter(|_| index == 0 || is_list) {
                Some(label) => Cell::Ref(label.clone()),
                None => Cell::U32(*cell),
            }
        });
        Ok(Value::Cells(cells.collect()))
    }

    fn leads_to(&self, node: &HostNode, reason: &str) -> String {
        format!("{reason} ({})", self.tree.path(node))
    }

    /// The nodes below the device's; `covered` are the addresses of its bus that are in the guest,
    /// if that has addresses of the host's.
    pub(super) fn children(
        &mut self,
        host: &HostNode,
        covered: Option<Vec<Range<u64>>>,
        cells: BusCells,
    ) -> Vec<Node> {
        let place = Place { covered, cells, interrupts: host.has("#interrupt-cells") };
        self.nodes_below(host, "", &place)
    }

    fn nodes_below(&mut self, host: &HostNode, path: &str, place: &Place) -> Vec<Node> {
        let mut nodes = Vec::new();
        for child in host.children() {
            let path = below(path, child.name());
            match self.refusal(child, place) {
                Some(reason) => self.reasons.note(&path, "", reason),
                None => nodes.push(self.node(child, &path, place)),
            }
        }
        nodes
    }

    /// Why a node can't be in the guest.
    fn refusal(&self, host: &HostNode, place: &Place) -> Option<&'static str> {
        if !is_node_name(host.name()) {
            return Some("a blob can't have nodes of this name");
        }
        let covered = place.covered.as_ref()?;
        match host.reg(place.cells) {
            Ok(reg) if reg.iter().all(|range| windows::covers(covered, range)) => None,
            Ok(_) => Some("its registers are none of the device's"),
            Err(_) => Some("its addresses can't be translated"),
        }
    }

    fn node(&mut self, host: &HostNode, path: &str, place: &Place) -> Node {
        let mut node = Node::new(host.name());
        if let Some(phandle) = phandle(host) {
            node = node.phandle(phandle);
            node.set_label(self.inside.get(&phandle).cloned());
        }
        let interrupts = match host.u32("interrupt-parent") {
            Ok(Some(phandle)) => self.inside.contains_key(&phandle),
            _ => place.interrupts,
        };
        for property in host.properties() {
            let value = match property.name.as_str() {
                "interrupt-parent" | "interrupts" | "interrupt-names" if interrupts => {
                    self.own_interrupts(property)
                }
                "interrupts-extended" => {
                    self.list(host, "interrupts-extended", "#interrupt-cells", "").ok()
                }
                // What the device itself gets anew is the same for those below.
                "#address-cells" | "#size-cells" | "compatible" | "dma-coherent" | "ranges"
                | "reg" | "reg-names" | "status" => Some(property.value()),
                "interrupt-parent" | "interrupts" | "interrupt-names" | "clocks"
                | "clock-names" => None,
                _ => self.value(host, path, property),
            };
            if let Some(value) = value {
                node.set(&property.name, value);
            } else if property.name.starts_with("interrupt") {
                let reason = "VFIO hands over the device's own interrupts only";
                self.reasons.note(path, &property.name, reason);
            }
        }
        self.add_clocks(&mut node, host, path);
        let ranges = host.ranges(place.cells.address);
        let covered = place.covered.as_ref().and_then(|covered| match &ranges {
            Ok(ranges) => windows::below(ranges, covered),
            // Unreadable: nothing below is where it should be.
            Err(_) => Some(Vec::new()),
        });
        let own = host.has("#interrupt-cells") || interrupts;
        let cells = host.child_cells().unwrap_or(place.cells);
        let children = self.nodes_below(host, path, &Place { covered, cells, interrupts: own });
        node.with_children(children)
    }

    /// What says that interrupts go to one of the device's own nodes.
    fn own_interrupts(&self, property: &HostProperty) -> Option<Value> {
        let phandle = property.bytes.as_slice().try_into().map(u32::from_be_bytes);
        match phandle.ok().and_then(|phandle| self.inside.get(&phandle)) {
            Some(label) if property.name == "interrupt-parent" => {
                Some(Value::Cells(vec![Cell::Ref(label.clone())]))
            }
            _ => Some(property.value()),
        }
    }

    /// Gives a node below the device's its clocks.
    fn add_clocks(&mut self, node: &mut Node, host: &HostNode, path: &str) {
        let clocks = self.clocks(host, path);
        if clocks.is_empty() {
            return;
        }
        let mut cells = Vec::new();
        for clock in clocks {
            let label = child_clock(self.label, self.clocks.len());
            cells.extend(clock.cells(&label));
            self.clocks.push((path.to_owned(), clock));
        }
        node.set("clocks", Value::Cells(cells));
        if let Some(names) = host.properties().iter().find(|p| p.name == "clock-names") {
            node.set("clock-names", names.value());
        }
    }
}

/// The node's phandle, unless it is one of the two that stand for none.
pub(super) fn phandle(host: &HostNode) -> Option<u32> {
    host.phandle().filter(|phandle| !matches!(*phandle, 0 | u32::MAX))
}

/// Gives the nodes below `host` that have phandles labels, of their paths.
fn name_below(host: &HostNode, path: &Label, inside: &mut BTreeMap<u32, Label>) {
    for child in host.children() {
        let label = Label::new(format!("{path}_{}", child.name()));
        if let Some(phandle) = phandle(child) {
            // `a-b` and `a_b` are the same as labels.
            let taken = inside.values().any(|other| *other == label);
            let label =
                if taken { Label::new(format!("{label}_{phandle:x}")) } else { label.clone() };
            inside.insert(phandle, label);
        }
        name_below(child, &label, inside);
    }
}
