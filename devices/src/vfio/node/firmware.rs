//! Clocks, resets and power domains that the device's nodes name on the host, and that a guest has by
//! SCMI: by numbers, and no others.

use std::collections::BTreeMap;

use boot::fdt::{Cell, Label, Node, Value};

use super::builder::NodeBuilder;
use super::clock::HostClock;
use super::domain::DomainKind;
use super::path::{join, remove};
use super::report::Reasons;
use crate::scmi::{self, numbered_name};

/// Why a guest isn't offered a reset.
const NO_RESET: &str = "neither VFIO nor a binding can reset the device";

/// The first numbers by which a guest has what a device names; `None` where it has none of a kind by
/// SCMI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScmiIds {
    /// Of clocks.
    pub clocks: Option<u32>,
    /// Of resets.
    pub resets: Option<u32>,
    /// Of power domains.
    pub power_domains: Option<u32>,
}

/// What a device's nodes name by SCMI, by the names in the guest, in the order of the numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScmiNames {
    /// Clocks.
    pub clocks: Vec<ScmiClock>,
    /// Resets.
    pub resets: Vec<String>,
    /// Power domains.
    pub power_domains: Vec<String>,
}

/// A clock that a guest has by SCMI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScmiClock {
    /// Its name in the guest.
    pub name: String,
    /// Its rate in Hz.
    pub rate: u32,
    /// The host's clock.
    pub host: HostClock,
}

impl ScmiIds {
    /// Those behind what these names take.
    pub fn after(self, names: &ScmiNames) -> Self {
        let behind = |first: Option<u32>, count: usize| {
            first.map(|first| first.saturating_add(u32::try_from(count).unwrap_or(u32::MAX)))
        };
        Self {
            clocks: behind(self.clocks, names.clocks.len()),
            resets: behind(self.resets, names.resets.len()),
            power_domains: behind(self.power_domains, names.power_domains.len()),
        }
    }
}

impl NodeBuilder {
    /// Whether there is anything that a guest can have by SCMI.
    pub fn names_firmware(&self) -> bool {
        let of_host = self.labelled_clocks().any(|(_, clock)| clock.host.is_some());
        of_host || !self.named.is_empty()
    }

    /// The host's clocks that the nodes name, by the names that options give them, with their rates in
    /// Hz where they are known.
    pub fn host_clocks(&self) -> impl Iterator<Item = (String, &HostClock, Option<u32>)> {
        let clocks = self.named_clocks();
        clocks.filter_map(|(name, clock)| Some((name, clock.host.as_ref()?, clock.rate)))
    }

    /// Numbers what the finished node names, from `ids` on, and takes out of it what the guest hasn't.
    pub(super) fn offer(
        &self,
        device: &mut Node,
        ids: ScmiIds,
        reasons: &mut Reasons,
    ) -> ScmiNames {
        let mut names = ScmiNames::default();
        let mut numbers = BTreeMap::new();
        for (label, clock) in self.labelled_clocks().filter(|(label, _)| refers(device, label)) {
            if let (Some(id), Some(rate), Some(host)) =
                (ids.after(&names).clocks, clock.rate, &clock.host)
            {
                let named = clock.name.as_deref().filter(|name| !name.is_empty());
                let name = named.or(host.name.as_deref()).unwrap_or("clock");
                let name = numbered_name(name, id);
                names.clocks.push(ScmiClock { name, rate, host: host.clone() });
                numbers.insert(label, (scmi::CLOCKS, id));
            }
        }
        for named in self.named.iter().filter(|named| refers(device, &named.label)) {
            let ids = ids.after(&names);
            let (id, provider, list) = match named.kind {
                DomainKind::Reset => {
                    (ids.resets.filter(|_| self.can_reset), scmi::RESETS, &mut names.resets)
                }
                DomainKind::Power => {
                    (ids.power_domains, scmi::POWER_DOMAINS, &mut names.power_domains)
                }
            };
            if let Some(id) = id {
                list.push(numbered_name(&named.provider, id));
                numbers.insert(named.label.clone(), (provider, id));
            }
        }
        for named in &self.named {
            if numbers.contains_key(&named.label) || !refers(device, &named.label) {
                continue;
            }
            let cannot = named.kind == DomainKind::Reset && ids.resets.is_some();
            let [property, companion] = named.kind.properties();
            let reason = if cannot { NO_RESET.to_owned() } else { named.reason.clone() };
            reasons.note(&named.node, property, reason);
            reasons.note(&named.node, companion, format!("it goes with {property}"));
            remove(device, &join(&named.node, property));
            remove(device, &join(&named.node, companion));
        }
        number(device, &numbers);
        names
    }
}

/// Replaces labels by references to protocols, with numbers.
fn number(node: &mut Node, numbers: &BTreeMap<Label, (&str, u32)>) {
    if numbers.is_empty() {
        return;
    }
    for value in node.values_mut() {
        let Value::Cells(cells) = value else { continue };
        let named = |cell: &Cell| matches!(cell, Cell::Ref(label) if numbers.contains_key(label));
        if cells.iter().any(named) {
            let numbered = std::mem::take(cells).into_iter().flat_map(|cell| match &cell {
                Cell::Ref(label) => match numbers.get(label) {
                    Some((provider, id)) => vec![Cell::Ref(Label::new(provider)), Cell::U32(*id)],
                    None => vec![cell],
                },
                Cell::U32(_) => vec![cell],
            });
            *cells = numbered.collect();
        }
    }
    node.children_mut().iter_mut().for_each(|child| number(child, numbers));
}

/// Whether a property in or below `node` refers to `label`.
pub(super) fn refers(node: &Node, label: &Label) -> bool {
    let here = node.properties().iter().any(|property| match &property.value {
        Value::Cells(cells) => {
            cells.iter().any(|cell| matches!(cell, Cell::Ref(other) if other == label))
        }
        _ => false,
    });
    here || node.children().iter().any(|child| refers(child, label))
}
