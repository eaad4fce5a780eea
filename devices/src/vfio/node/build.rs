//! The finished nodes: addresses and interrupts are filled in, and what became of the host's
//! properties is reported.

use boot::fdt::host::{BusCells, BusRange};
use boot::fdt::{Label, Node, is_property_name};

use super::alias::Alias;
use super::builder::NodeBuilder;
use super::clock::Clock;
use super::firmware::{ScmiIds, ScmiNames, refers};
use super::options::NodeError;
use super::path::{find, join, remove};
use super::ranges::range_cells;
use super::report::{self, PropertyReport};
use super::subtree::child_clock;
use crate::irq::{Spi, Trigger};

/// What an assigned device adds to the guest's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNodes {
    /// The device.
    pub device: Node,
    /// The bus that it is on, without it, where that isn't the root.
    pub bus: Option<Node>,
    /// The clocks to which it refers; they belong into `/clocks`.
    pub clocks: Vec<Node>,
    /// What names it and the nodes below.
    pub aliases: Vec<Alias>,
    /// What the nodes name by SCMI.
    pub scmi: ScmiNames,
    /// What became of each of the host's properties.
    pub properties: Vec<PropertyReport>,
}

impl GuestNodes {
    /// What goes below the root: the device, or the bus with it.
    pub fn top(&self) -> Node {
        match self.bus.clone() {
            Some(bus) => bus.child(self.device.clone()),
            None => self.device.clone(),
        }
    }
}

impl NodeBuilder {
    /// Checks that all rates are known that the guest has to know, and that all is there that options
    /// drop.
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
            return Err(NodeError::UnknownRates(clocks));
        }
        // With any addresses: what is dropped are names.
        let mut node = self.node(&[(0, 0)], &[(Spi(0), Trigger::Level)]);
        match self.options.drop.iter().find(|dropped| !remove(&mut node, dropped)) {
            Some(wanted) => Err(NodeError::NothingToDrop(wanted.clone())),
            None => Ok(()),
        }
    }

    /// Whether a property of a node, or the node, is dropped by an option.
    fn is_dropped(&self, node: &str, property: &str) -> bool {
        let property = join(node, property);
        self.options.drop.iter().any(|dropped| {
            let rest = property.strip_prefix(dropped.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// The finished nodes for a guest without SCMI, see [`build_with`](Self::build_with).
    pub fn build(&self, regions: &[(u64, u64)], irqs: &[(Spi, Trigger)]) -> GuestNodes {
        self.build_with(regions, irqs, ScmiIds::default())
    }

    /// The finished nodes: `regions` are GPA and size in bytes of each region, `irqs` the SPI of
    /// each interrupt and how it signals, both in VFIO's order, which is that of the host's node.
    ///
    /// Every cell count is that of the guest's root: two for an address and for a size, three for
    /// an interrupt of the GIC (Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml).
    ///
    /// `ids` are the first numbers by which the guest has the host's clocks, resets and power domains by
    /// SCMI, where it has.
    pub fn build_with(
        &self,
        regions: &[(u64, u64)],
        irqs: &[(Spi, Trigger)],
        ids: ScmiIds,
    ) -> GuestNodes {
        let mut device = self.node(regions, irqs);
        let mut reasons = self.reasons.clone();
        for dropped in &self.options.drop {
            remove(&mut device, dropped);
            reasons.note_option(dropped);
        }
        let scmi = self.offer(&mut device, ids, &mut reasons);
        // Without those to which nothing refers any more, since an option dropped what did.
        let clocks = self
            .labelled_clocks()
            .filter(|(label, _)| refers(&device, label))
            .filter_map(|(label, clock)| clock.node(&label))
            .collect();
        let (host, phandles) = (&self.host, &self.phandles);
        let properties = report::compare(&self.device, host, &device, phandles, &reasons);
        let bus = self.bus();
        let aliases = self.aliases_of(&device, bus.as_ref());
        GuestNodes { device, bus, clocks, aliases, scmi, properties }
    }

    /// A bus for the device that limits what it addresses, as its own does on the host: Linux looks
    /// for that above the device (`of_dma_get_range`).
    fn bus(&self) -> Option<Node> {
        const CELLS: BusCells = BusCells { address: 2, size: 2 };
        let reach = self.bus_dma_limit.as_ref()?;
        // A size of 2^64 can't be written, and is no limit.
        let entries = reach.ranges.iter().map(|range| BusRange {
            child: *range.start(),
            parent: *range.start(),
            size: (range.end() - range.start()).saturating_add(1),
        });
        let ranges = Some(range_cells(entries, CELLS)).filter(|ranges| !ranges.is_empty())?;
        Some(
            Node::new(format!("bus-{}", self.label.as_str().trim_start_matches('_')))
                .string("compatible", "simple-bus")
                .u32("#address-cells", CELLS.address)
                .u32("#size-cells", CELLS.size)
                .flag("ranges")
                .cells("dma-ranges", ranges),
        )
    }

    /// The aliases of the nodes that are there.
    fn aliases_of(&self, device: &Node, bus: Option<&Node>) -> Vec<Alias> {
        let chosen = self.options.aliases.iter().map(|name| (name, "", true));
        let of_host = self.aliases.iter().map(|(name, below)| (name, below.as_str(), false));
        // An option replaces the device's own.
        let of_host =
            of_host.filter(|(_, below, _)| !below.is_empty() || self.options.aliases.is_empty());
        let there = chosen
            .chain(of_host)
            .filter(|(name, below, _)| is_property_name(name) && find(device, below).is_some());
        let bus = bus.map(|bus| format!("/{}", bus.name())).unwrap_or_default();
        let root = format!("{bus}/{}", device.name());
        let alias = |(name, below, chosen): (&String, &str, bool)| Alias {
            name: name.clone(),
            path: if below.is_empty() { root.clone() } else { join(&root, below) },
            chosen,
        };
        there.map(alias).collect()
    }

    /// The clocks by the labels that the nodes name them by.
    pub(super) fn labelled_clocks(&self) -> impl Iterator<Item = (Label, &Clock)> {
        let own = self.clocks.iter().enumerate();
        let own = own.map(|(index, clock)| (self.clock_label(index), clock));
        let below = self.child_clocks.iter().enumerate();
        let below = below.map(|(number, (_, clock))| (child_clock(&self.label, number), clock));
        own.chain(below)
    }

    fn clock_label(&self, index: usize) -> Label {
        Label::new(format!("{}_clock{index}", self.label))
    }

    /// The device's node, with all that options drop.
    fn node(&self, regions: &[(u64, u64)], irqs: &[(Spi, Trigger)]) -> Node {
        let mut node = match regions.first() {
            Some((gpa, _)) => Node::at(&self.name, *gpa),
            None => Node::new(&*self.name),
        };
        node.set_label(Some(self.label.clone()));
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
        if let Some(ranges) = &self.ranges {
            let gpas: Vec<u64> = regions.iter().map(|(gpa, _)| *gpa).collect();
            node = node.cells("ranges", ranges.cells(&gpas));
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
        with_names(node, "clock-names", &names, names.len())
    }
}

/// Adds the names of the first `count` entries of a list, as far as the host has names: a list may
/// have fewer, and those belong to its first entries (Linux `of_property_match_string`).
fn with_names(node: Node, property: &str, names: &[String], count: usize) -> Node {
    let names: Vec<&str> = names.iter().take(count).map(String::as_str).collect();
    if names.is_empty() { node } else { node.strings(property, names) }
}
