//! The guest's node in the making.

use std::ops::Range;
use std::sync::Arc;

use boot::fdt::host::{DmaReach, HostError, HostNode, HostTree, Ranges};
use boot::fdt::{Cell, Label, Node, Property, Value, is_node_name};

use super::alias::is_alias_name;
use super::build::remove;
use super::clock::Clock;
use super::options::{NodeError, NodeOptions};
use super::phandle_map::{self, HostDeviceNode, PhandleMap};
use super::property::{self, Kind};
use super::ranges::{Place, UNTRANSLATED, Windows, dma_ranges};
use super::report::{self, Reasons};
use super::subtree::Copier;
use crate::irq::{Spi, Trigger};

/// The guest's node in the making: all but addresses and interrupts, which the machine's layout
/// decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeBuilder {
    /// The node's name without its address.
    pub name: String,
    /// `compatible`, the most specific first.
    pub compatible: Vec<String>,
    /// `clocks` and `clock-names`.
    pub clocks: Vec<Clock>,
    /// `dma-coherent`, as it is on the host: a guest that is told wrong reads stale memory.
    pub dma_coherent: bool,
    /// What its bus lets it address, if that is limited: the guest's kernel copies what is elsewhere.
    pub dma_reach: Option<DmaReach>,
    /// `reg-names`: of the regions, or the first of them.
    pub reg_names: Vec<String>,
    /// `interrupt-names`: of the interrupts, or the first of them.
    pub interrupt_names: Vec<String>,
    /// The other properties, in order.
    pub properties: Vec<Property>,
    /// Child nodes.
    pub children: Vec<Node>,
    /// The host's aliases of it, and of the nodes below: their names, and the nodes' paths below its
    /// own, empty for itself.
    pub aliases: Vec<(String, String)>,
    /// The aliases that a person chose for it.
    pub(super) own_aliases: Vec<String>,
    /// Where its registers are on the host, by physical address, or why that isn't known. None where
    /// they have no addresses of at most 64 bits.
    pub addresses: Vec<Result<Range<u64>, String>>,
    pub(super) label: Option<Label>,
    pub(super) phandle: Option<u32>,
    pub(super) windows: Option<Windows>,
    pub(super) child_clocks: Vec<(String, Clock)>,
    pub(super) drop: Vec<String>,
    pub(super) host: Option<HostNode>,
    /// What sysfs calls it.
    pub(super) device: String,
    pub(super) phandles: Arc<PhandleMap>,
    pub(super) reasons: Reasons,
}

impl NodeBuilder {
    /// Of a device of which no more than this is known.
    pub fn new(name: &str, compatible: &[&str]) -> Self {
        let compatible = compatible.iter().map(|&string| string.to_owned()).collect();
        Self { name: name.to_owned(), compatible, ..Self::default() }
    }

    /// What of the host's node means the same in a guest that has `phandles` of the host's nodes, this
    /// one among them.
    ///
    /// # Errors
    ///
    /// If the node is malformed. What it refers to may be: it is left out then.
    pub fn of(
        tree: &HostTree,
        phandles: &Arc<PhandleMap>,
        given: &HostDeviceNode<'_>,
    ) -> Result<Self, HostError> {
        let HostDeviceNode { node: host, name, options } = *given;
        let strings = |name| {
            let strings = host.strings(name)?.unwrap_or_default();
            Ok::<Vec<String>, HostError>(strings.into_iter().map(str::to_owned).collect())
        };
        let label = Label::new(name);
        let reg = host.reg(tree.bus_cells(host)?).unwrap_or_else(|error| {
            log::debug!("{name}: {error}");
            Vec::new()
        });
        let mut copier = Copier::new(tree, phandles, &label, &options.rates);
        let (windows, children) = children(tree, host, &reg, &mut copier)?;
        let clocks = copier.clocks(host, "");
        let properties = properties(host, &mut copier, !children.is_empty());
        let Copier { clocks: child_clocks, reasons, .. } = copier;
        let mut builder = Self {
            name: name_of(host),
            compatible: strings("compatible")?,
            clocks,
            dma_coherent: tree.is_dma_coherent(host)?,
            dma_reach: tree.dma_reach(host)?,
            reg_names: strings("reg-names")?,
            interrupt_names: strings("interrupt-names")?,
            properties,
            aliases: phandles.aliases(&tree.path(host)),
            own_aliases: Vec::new(),
            addresses: addresses(tree, host, &reg),
            phandle: phandle_map::phandle(host),
            windows: windows.filter(|_| !children.is_empty()),
            children,
            child_clocks,
            drop: Vec::new(),
            host: Some(host.clone()),
            device: name.to_owned(),
            phandles: phandles.clone(),
            reasons,
            label: Some(label),
        };
        builder.note_reasons();
        Ok(builder)
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
        note("interrupt-names", "VFIO has no interrupt of it");
        note("reg", "VFIO has no region of it");
        note("reg-names", "VFIO has no region of it");
        note("ranges", "none of the nodes below has registers of the device");
        note("clock-names", "the guest has no clock with a name");
        for of_bus in ["#address-cells", "#size-cells", "dma-ranges"] {
            note(of_bus, "the guest has none of the nodes below");
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
        if let Some(name) = options.aliases.iter().find(|name| !is_alias_name(name)) {
            return Err(NodeError::Alias { name: name.clone() });
        }
        self.own_aliases.clone_from(&options.aliases);
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
            report::below(path, &name.unwrap_or_else(|| index.to_string()))
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
        let property = report::below(node, property);
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
}

/// `dma-ranges` of the device's own bus: as on the host, in the cells of the guest's root. What it
/// makes of addresses it does within the device, before the IOMMU.
fn own_dma_ranges(host: &HostNode, copier: &mut Copier<'_>) -> Option<Value> {
    let ranges = copier.bus_cells(host).and_then(|above| {
        let cells = host.child_cells()?;
        // Those of PCI say which space they mean, which isn't read.
        let plain = cells.address <= 2;
        Ok((cells, if plain { host.dma_ranges(above.address)? } else { Ranges::None }))
    });
    match ranges {
        Ok((_, Ranges::Same)) => Some(Value::Empty),
        Ok((cells, Ranges::Entries(entries))) => {
            Some(Value::Cells(dma_ranges(entries, cells).into_iter().map(Cell::U32).collect()))
        }
        Ok((_, Ranges::None)) | Err(_) => {
            copier.reasons.note("", "dma-ranges", UNTRANSLATED);
            None
        }
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
            let place = Place::in_device(host, windows.as_ref())?;
            let interrupts = host.has("#interrupt-cells");
            Ok((windows, copier.nodes_below(host, "", &place, interrupts)))
        }
        Err(error) => {
            log::debug!("{}: the nodes below it are left out: {error}", host.name());
            copier.reasons.note("", "ranges", UNTRANSLATED);
            for child in host.children() {
                copier.reasons.note(child.name(), "", UNTRANSLATED);
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
            Kind::Made if property.name == "dma-ranges" && has_children => {
                own_dma_ranges(host, copier)
            }
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
