//! The device's own nodes: what of their properties and of the nodes below means the same in a
//! guest.

use std::path::Path;

use boot::fdt::host::{HostNode, HostProperty, HostTree};
use boot::fdt::{Cell, Label, Node, Value, is_property_name};

use super::clock::{Clock, clocks_of};
use super::domain::{DomainKind, NamedDomain};
use super::path::join;
use super::phandle_map::{PhandleMap, phandle};
use super::property::{INTERRUPTS, Kind, kind};
use super::ranges::BusScope;
use super::report::Reasons;

/// Copies nodes, noting what it leaves out.
pub(super) struct NodeCopier<'a> {
    pub(super) tree: &'a HostTree,
    /// The directory with the rates of the host's clocks.
    rates: &'a Path,
    /// The device's label, with which others begin.
    label: &'a Label,
    /// What the guest has of the host's nodes.
    phandles: &'a PhandleMap,
    /// Why properties and nodes were left out.
    pub(super) reasons: Reasons,
    /// The clocks of nodes below the device's, and those nodes' paths.
    pub(super) clocks: Vec<(String, Clock)>,
    /// The resets and power domains of the host's that the nodes name.
    pub(super) named: Vec<NamedDomain>,
}

/// The label of the clock of this number of a node below the device's.
pub(super) fn child_clock(device: &Label, number: usize) -> Label {
    Label::new(format!("{device}_child_clock{number}"))
}

impl<'a> NodeCopier<'a> {
    /// For the device with this label.
    pub(super) fn new(
        tree: &'a HostTree,
        phandles: &'a PhandleMap,
        label: &'a Label,
        rates: &'a Path,
    ) -> Self {
        let (reasons, clocks, named) = Default::default();
        Self { tree, rates, label, phandles, reasons, clocks, named }
    }

    /// The clocks of a node.
    pub(super) fn clocks(&mut self, host: &HostNode, path: &str) -> Vec<Clock> {
        clocks_of(self.tree, host, self.phandles, self.rates).unwrap_or_else(|error| {
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
            Kind::Generated => return None,
            Kind::Dropped(reason) => Err(reason.to_owned()),
            // A line that the GPIO controller above holds: numbers without its phandle
            // (Documentation/devicetree/bindings/gpio/gpio.txt, "gpio-hog").
            Kind::References(..) if name == "gpios" && host.has("gpio-hog") => Ok(property.value()),
            Kind::References(count, reason) => self.references(host, (path, name), count, reason),
            Kind::Groups(cells, reason) => self.groups(property, cells, reason),
            Kind::Phandles(reason) => self.phandles(property, reason, true),
            Kind::MaybePhandles(reason) => self.phandles(property, reason, false),
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

    /// A list of references with arguments, as many as the nodes' properties called `count` say.
    fn references(
        &mut self,
        host: &HostNode,
        (path, name): (&str, &str),
        count: &str,
        reason: &str,
    ) -> Result<Value, String> {
        let references =
            self.tree.references(host, name, Some(count)).map_err(|_| reason.to_owned())?;
        let mut cells = Vec::new();
        for (index, reference) in references.into_iter().enumerate() {
            let Some(reference) = reference else {
                cells.push(Cell::U32(0));
                continue;
            };
            if let Some(kept) = self.phandles.cells(&reference) {
                cells.extend(kept);
                continue;
            }
            let reason = self.leads_to(&reference.provider, reason);
            let kind = DomainKind::of(path, name).ok_or_else(|| reason.clone())?;
            let label = Label::new(format!("{}_{path}_{name}{index}", self.label));
            // A property is looked at again for those that go with it.
            if self.named.iter().all(|named| named.label != label) {
                let provider = reference.provider.name().split('@').next().unwrap_or_default();
                self.named.push(NamedDomain {
                    kind,
                    label: label.clone(),
                    node: path.to_owned(),
                    provider: provider.to_owned(),
                    reason,
                });
            }
            cells.push(Cell::Ref(label));
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
        let mut kept = Vec::with_capacity(cells.len());
        for group in cells.chunks(arguments.saturating_add(1)) {
            let (phandle, rest) = group.split_first().ok_or_else(|| reason.to_owned())?;
            let label = self.phandles.label(*phandle).ok_or_else(|| reason.to_owned())?;
            kept.push(Cell::Ref(label.clone()));
            kept.extend(rest.iter().copied().map(Cell::U32));
        }
        Ok(if kept.is_empty() { property.value() } else { Value::Cells(kept) })
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
            node.filter(|_| !self.phandles.has(*phandle))
        };
        let Some(first) = cells.first() else { return Ok(property.value()) };
        if let Some(node) = outside(first) {
            return Err(self.leads_to(&node, reason));
        }
        if !self.phandles.has(*first) {
            let nowhere = || format!("{reason} (its phandle {first:#x} leads nowhere)");
            return if surely { Err(nowhere()) } else { Ok(property.value()) };
        }
        // A list of nothing but phandles is one whole.
        let nodes: Vec<_> = cells.iter().map(outside).collect();
        let known =
            |cell: &u32, node: &Option<_>| *cell == 0 || node.is_some() || self.phandles.has(*cell);
        let is_list = cells.iter().zip(&nodes).all(|(cell, node)| known(cell, node));
        if let Some(node) = nodes.into_iter().flatten().next().filter(|_| is_list) {
            return Err(self.leads_to(&node, reason));
        }
        let cells = cells.iter().enumerate().map(|(index, cell)| {
            match self.phandles.label(*cell).filter(|_| index == 0 || is_list) {
                Some(label) => Cell::Ref(label.clone()),
                None => Cell::U32(*cell),
            }
        });
        Ok(Value::Cells(cells.collect()))
    }

    fn leads_to(&self, node: &HostNode, reason: &str) -> String {
        format!("{reason} ({})", self.tree.path(node))
    }

    /// The nodes below `host`, at this path below the device's. `interrupts` says whether the guest
    /// has the interrupt controller of those that name none.
    pub(super) fn nodes_below(
        &mut self,
        host: &HostNode,
        path: &str,
        scope: &BusScope,
        interrupts: bool,
    ) -> Vec<Node> {
        let mut nodes = Vec::new();
        for child in host.children() {
            let path = join(path, child.name());
            match self.phandles.refusal(child, scope) {
                Some(reason) => self.reasons.note(&path, "", reason),
                None => nodes.push(self.node(child, &path, scope, interrupts)),
            }
        }
        nodes
    }

    fn node(&mut self, host: &HostNode, path: &str, scope: &BusScope, interrupts: bool) -> Node {
        let mut node = Node::new(host.name());
        if let Some(phandle) = phandle(host) {
            node = node.phandle(phandle);
            node.set_label(self.phandles.label(phandle).cloned());
        }
        let interrupts = match host.u32("interrupt-parent") {
            Ok(Some(phandle)) => self.phandles.has(phandle),
            _ => interrupts,
        };
        for property in host.properties() {
            let value = match property.name.as_str() {
                "interrupt-parent" | "interrupts" | "interrupt-names" if interrupts => {
                    self.own_interrupts(property)
                }
                "interrupts-extended" => self
                    .references(host, (path, "interrupts-extended"), "#interrupt-cells", "")
                    .ok(),
                // What the device itself gets anew is the same for those below.
                "#address-cells" | "#size-cells" | "compatible" | "dma-coherent" | "dma-ranges"
                | "ranges" | "reg" | "reg-names" | "status" => Some(property.value()),
                "interrupt-parent" | "interrupts" | "interrupt-names" | "clocks"
                | "clock-names" => None,
                _ => self.value(host, path, property),
            };
            if let Some(value) = value {
                node.set(&property.name, value);
            } else if property.name.starts_with("interrupt") {
                self.reasons.note(path, &property.name, INTERRUPTS);
            }
        }
        self.add_clocks(&mut node, host, path);
        let interrupts = host.has("#interrupt-cells") || interrupts;
        node.with_children(self.nodes_below(host, path, &scope.below(host), interrupts))
    }

    /// What says that interrupts go to one of the device's own nodes.
    fn own_interrupts(&self, property: &HostProperty) -> Option<Value> {
        let phandle = property.bytes.as_slice().try_into().map(u32::from_be_bytes);
        match phandle.ok().and_then(|phandle| self.phandles.label(phandle)) {
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
