//! The device's clocks, which a guest can't switch or scale: each is a `fixed-clock` to it, or one by SCMI.

use std::path::Path;

use boot::fdt::host::{HostError, HostNode, HostTree};
use boot::fdt::{Cell, Label, Node};

use super::phandle_map::PhandleMap;

/// A clock of the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Its name in `clock-names`.
    pub name: Option<String>,
    /// Its rate in Hz, where known; the guest has a `fixed-clock` with this rate
    /// (Documentation/devicetree/bindings/clock/fixed-clock.yaml).
    pub rate: Option<u32>,
    /// The reference to it where the guest has it as the host has: it is made by the device itself, or
    /// by another assigned device.
    pub reference: Option<Vec<Cell>>,
    /// The host's clock that it is.
    pub host: Option<HostClock>,
}

/// A clock of the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostClock {
    /// What the host calls it, where the tree says.
    pub name: Option<String>,
    /// The path of the node that makes it.
    pub provider: String,
}

impl Clock {
    /// A clock with this name and rate in Hz.
    pub fn new(name: Option<&str>, rate: Option<u32>) -> Self {
        Self { name: name.map(str::to_owned), rate, ..Self::default() }
    }

    /// Whether the guest can have it.
    pub(super) fn is_known(&self) -> bool {
        self.rate.is_some() || self.reference.is_some()
    }

    /// Its `fixed-clock`, unless a device of the guest makes it.
    pub(super) fn node(&self, label: &Label) -> Option<Node> {
        let rate = self.rate.filter(|_| self.reference.is_none())?;
        let name = label.as_str().trim_start_matches('_');
        Some(
            Node::new(format!("clock-{name}"))
                .label(label.clone())
                .string("compatible", "fixed-clock")
                .u32("#clock-cells", 0)
                .u32("clock-frequency", rate),
        )
    }

    /// The entry of `clocks` that refers to it.
    pub(super) fn cells(&self, label: &Label) -> Vec<Cell> {
        self.reference.clone().unwrap_or_else(|| vec![Cell::Ref(label.clone())])
    }
}

/// The clocks of a node; `rates` is the directory with the rates of the host's clocks.
///
/// # Errors
///
/// Its references are malformed.
pub(super) fn clocks_of(
    tree: &HostTree,
    host: &HostNode,
    phandles: &PhandleMap,
    rates: &Path,
) -> Result<Vec<Clock>, HostError> {
    let names = host.strings("clock-names")?.unwrap_or_default();
    let references = tree.references(host, "clocks", Some("#clock-cells"))?;
    let clocks = references.iter().enumerate().map(|(index, reference)| {
        let mut clock = Clock::new(names.get(index).copied(), None);
        let Some(reference) = reference else {
            // An entry that says that there is none.
            clock.reference = Some(vec![Cell::U32(0)]);
            return clock;
        };
        clock.reference = phandles.cells(reference);
        if clock.reference.is_none() {
            let (name, provider) = (reference.clock_name(), tree.path(&reference.provider));
            clock.host = Some(HostClock { name: name.unwrap_or_default(), provider });
            clock.rate = tree.clock_rate(reference, rates).unwrap_or_else(|error| {
                log::warn!("a clock of {}: {error}", host.name());
                None
            });
        }
        clock
    });
    Ok(clocks.collect())
}
