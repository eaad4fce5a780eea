//! The guest's node in the making: what is taken from the host's node, refined by a binding and by
//! options.

use std::ops::Range;
use std::sync::Arc;

use boot::fdt::host::{BusDmaLimit, HostError, HostNode, HostTree, Ranges};
use boot::fdt::{Cell, Label, Node, Property, Value, is_node_name};

use super::alias::is_alias_name;
use super::clock::Clock;
use super::domain::NamedDomain;
use super::options::{NodeError, NodeOptions};
use super::path::join;
use super::phandle_map::{HostDeviceNode, PhandleMap, phandle};
use super::ranges::{BusScope, ChildRanges, UNTRANSLATED, range_cells};
use super::report::Reasons;
use super::subtree::NodeCopier;

/// Why the guest's node has none of a property that is generated for it, where it has none.
const NOT_GENERATED: [(&str, &str); 12] = [
    ("status", "the guest has the device, so it is there and works"),
    ("interrupt-parent", "the guest has one interrupt controller, the root's"),
    ("interrupts-extended", "the guest has its interrupts in `interrupts`"),
    ("interrupts", "VFIO has no interrupt of it"),
    ("interrupt-names", "VFIO has no interrupt of it"),
    ("reg", "VFIO has no region of it"),
    ("reg-names", "VFIO has no region of it"),
    ("ranges", "none of the nodes below has registers of the device"),
    ("clock-names", "the guest has no clock with a name"),
    ("#address-cells", "the guest has none of the nodes below"),
    ("#size-cells", "the guest has none of the nodes below"),
    ("dma-ranges", "the guest has none of the nodes below"),
];

/// The guest's node in the making: all but addresses and interrupts, which the machine's layout
/// decides.
#[derive(Clone, Debug)]
pub struct NodeBuilder {
    /// The node's name without its address.
    pub name: String,
    /// `compatible`, the most specific first.
    pub compatible: Vec<String>,
    /// `clocks` and `clock-names`.
    pub clocks: Vec<Clock>,
    /// The properties that aren't generated, in order.
    pub properties: Vec<Property>,
    /// Where its registers are on the host, by physical address, or why that isn't known. None where
    /// they have no addresses of at most 64 bits.
    pub addresses: Vec<Result<Range<u64>, String>>,
    /// `dma-coherent`, as it is on the host: a guest that is told wrong reads stale memory.
    pub(super) dma_coherent: bool,
    /// What its bus lets it address, if that is limited: the guest's kernel copies what is elsewhere.
    pub(super) bus_dma_limit: Option<BusDmaLimit>,
    /// `reg-names`: of the regions, or the first of them.
    pub(super) reg_names: Vec<String>,
    /// `interrupt-names`: of the interrupts, or the first of them.
    pub(super) interrupt_names: Vec<String>,
    /// Child nodes.
    pub(super) children: Vec<Node>,
    /// The host's aliases of it, and of the nodes below: their names, and the nodes' paths below its
    /// own, empty for itself.
    pub(super) aliases: Vec<(String, String)>,
    pub(super) label: Label,
    pub(super) phandle: Option<u32>,
    pub(super) ranges: Option<ChildRanges>,
    /// The clocks of nodes below, and those nodes' paths.
    pub(super) child_clocks: Vec<(String, Clock)>,
    /// Its resets and power domains on the host, and those of nodes below.
    pub(super) named: Vec<NamedDomain>,
    /// Whether the device can be reset.
    pub(super) can_reset: bool,
    pub(super) options: NodeOptions,
    pub(super) host: HostNode,
    /// Its name in sysfs.
    pub(super) device: String,
    pub(super) phandles: Arc<PhandleMap>,
    pub(super) reasons: Reasons,
}

impl NodeBuilder {
    /// Takes from the host's node what means the same in a guest that has the nodes of `phandles`, this
    /// one among them. The options are [applied](Self::apply_options) after a binding.
    ///
    /// # Errors
    ///
    /// If the node is malformed. What it refers to may be: it is left out then.
    pub fn from_host(
        tree: &HostTree,
        phandles: &Arc<PhandleMap>,
        device: &HostDeviceNode<'_>,
    ) -> Result<Self, HostError> {
        let HostDeviceNode { node: host, name, options } = *device;
        let strings = |name| {
            let strings = host.strings(name)?.unwrap_or_default();
            Ok::<Vec<String>, HostError>(strings.into_iter().map(str::to_owned).collect())
        };
        let label = Label::new(name);
        let reg = host.reg(tree.bus_cells(host)?).unwrap_or_else(|error| {
            log::debug!("{name}: {error}");
            Vec::new()
        });
        let mut copier = NodeCopier::new(tree, phandles, &label, &options.clk_debugfs);
        let (ranges, children) = children(host, &reg, &mut copier)?;
        let clocks = copier.clocks(host, "");
        let properties = properties(host, &mut copier, !children.is_empty());
        let NodeCopier { clocks: child_clocks, named, mut reasons, .. } = copier;
        for (property, reason) in NOT_GENERATED {
            reasons.note("", property, reason);
        }
        Ok(Self {
            name: node_name(host),
            compatible: strings("compatible")?,
            clocks,
            properties,
            addresses: addresses(tree, host, &reg),
            dma_coherent: tree.is_dma_coherent(host)?,
            bus_dma_limit: tree.bus_dma_limit(host)?,
            reg_names: strings("reg-names")?,
            interrupt_names: strings("interrupt-names")?,
            ranges: ranges.filter(|_| !children.is_empty()),
            children,
            aliases: phandles.aliases(&tree.path(host)),
            phandle: phandle(host),
            child_clocks,
            named,
            can_reset: true,
            options: NodeOptions::default(),
            host: host.clone(),
            device: name.to_owned(),
            phandles: phandles.clone(),
            reasons,
            label,
        })
    }

    /// The host's node that it is made of.
    pub fn host_node(&self) -> &HostNode {
        &self.host
    }

    /// Applies options, over what the host and a binding say.
    ///
    /// # Errors
    ///
    /// They name something that isn't there.
    pub fn apply_options(&mut self, options: &NodeOptions) -> Result<(), NodeError> {
        if let Some(name) = &options.name {
            if !is_node_name(name) || name.contains('@') {
                return Err(NodeError::Name(name.clone()));
            }
            self.name.clone_from(name);
        }
        if !options.compatible.is_empty() {
            self.compatible.clone_from(&options.compatible);
        }
        for (wanted, rate) in &options.clock_rates {
            let clocks: Vec<String> = self.named_clocks().map(|(name, _)| name).collect();
            let index = clocks.iter().position(|name| name == wanted);
            let below = self.child_clocks.iter_mut().map(|(_, clock)| clock);
            let clock = index.and_then(|index| self.clocks.iter_mut().chain(below).nth(index));
            let wanted = wanted.clone();
            clock.ok_or(NodeError::NoClock { wanted, clocks })?.rate = Some(*rate);
        }
        if let Some(name) = options.aliases.iter().find(|name| !is_alias_name(name)) {
            return Err(NodeError::Alias(name.clone()));
        }
        self.options = options.clone();
        Ok(())
    }

    /// The clocks by the names that options give them.
    pub(super) fn named_clocks(&self) -> impl Iterator<Item = (String, &Clock)> {
        let named = |path: &str, index: usize, clock: &Clock| {
            let name = clock.name.clone().filter(|name| !name.is_empty());
            join(path, &name.unwrap_or_else(|| index.to_string()))
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

    /// Says that the device can't be reset: a guest is offered none of its resets.
    pub fn without_resets(&mut self) {
        self.can_reset = false;
    }

    /// Whether the host's node has a property that the guest's hasn't.
    pub fn is_without(&self, name: &str) -> bool {
        self.host.has(name) && self.properties.iter().all(|property| property.name != name)
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
fn own_dma_ranges(host: &HostNode, copier: &mut NodeCopier<'_>) -> Option<Value> {
    let ranges = copier.tree.bus_cells(host).and_then(|above| {
        let cells = host.child_cells()?;
        // Those of PCI say which space they mean, which isn't read.
        let plain = cells.address <= 2;
        Ok((cells, if plain { host.dma_ranges(above.address)? } else { Ranges::None }))
    });
    match ranges {
        Ok((_, Ranges::Same)) => Some(Value::Empty),
        Ok((cells, Ranges::Entries(entries))) => {
            Some(Value::Cells(range_cells(entries, cells).into_iter().map(Cell::U32).collect()))
        }
        Ok((_, Ranges::None)) | Err(_) => {
            copier.reasons.note("", "dma-ranges", UNTRANSLATED);
            None
        }
    }
}

/// The node's name without its address, with what a blob can't have replaced.
fn node_name(host: &HostNode) -> String {
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
    host: &HostNode,
    reg: &[Range<u64>],
    copier: &mut NodeCopier<'_>,
) -> Result<(Option<ChildRanges>, Vec<Node>), HostError> {
    if host.children().is_empty() {
        return Ok((None, Vec::new()));
    }
    match ChildRanges::of(host, reg, copier.tree.bus_cells(host)?.address) {
        Ok(ranges) => {
            let scope = BusScope::of_device(host, ranges.as_ref())?;
            let interrupts = host.has("#interrupt-cells");
            Ok((ranges, copier.nodes_below(host, "", &scope, interrupts)))
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

/// The device's own properties that aren't generated.
fn properties(host: &HostNode, copier: &mut NodeCopier<'_>, has_children: bool) -> Vec<Property> {
    let mut properties = Vec::new();
    for property in host.properties() {
        let value = match property.name.as_str() {
            "#address-cells" | "#size-cells" if has_children => Some(property.value()),
            "dma-ranges" if has_children => own_dma_ranges(host, copier),
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
