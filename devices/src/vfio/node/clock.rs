//! The device's clocks, which a guest can't switch or scale: each is a `fixed-clock` to it.

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
    /// It is made by the device itself, or by another that the guest has too, and this refers to it;
    /// the guest has it as it is.
    pub reference: Option<Vec<Cell>>,
}

impl Clock {
    /// A clock with this name and rate in Hz.
    pub fn new(name: Option<&str>, rate: Option<u32>) -> Self {
        Self { name: name.map(str::to_owned), rate, reference: None }
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
pub(super) fn of(
    tree: &HostTree,
    host: &HostNode,
    phandles: &PhandleMap,
    rates: &Path,
) -> Result<Vec<Clock>, HostError> {
    let names = host.strings("clock-names")?.unwrap_or_default();
    let references = tree.references(host, "clocks", Some("#clock-cells"))?;
    let clocks = references.iter().enumerate().map(|(index, reference)| {
        let name = names.get(index).map(|name| (*name).to_owned());
        let Some(reference) = reference else {
            // An entry that says that there is none.
            return Clock { name, rate: None, reference: Some(vec![Cell::U32(0)]) };
        };
        let own = reference.provider.phandle().and_then(|phandle| phandles.label(phandle));
        if let Some(label) = own {
            let arguments = reference.arguments.iter().map(|cell| Cell::U32(*cell));
            let own = [Cell::Ref(label.clone())].into_iter().chain(arguments).collect();
            return Clock { name, rate: None, reference: Some(own) };
        }
        let rate = tree.clock_rate(reference, rates).unwrap_or_else(|error| {
            log::warn!("a clock of {}: {error}", host.name());
            None
        });
        Clock { name, rate, reference: None }
    });
    Ok(clocks.collect())
}
