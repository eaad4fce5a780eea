//! The host's clocks that a device's node names: strait can't turn them on.

use boot::fdt::host::{ClockStates, HostNode, HostTree, SYSTEM_CLOCKS};
use serde::Serialize;

/// What keeps a clock on that no driver uses while its device is with VFIO.
pub const KEEP_ON: &str = "clk_ignore_unused on the host's kernel command line leaves on what firmware \
     turned on; a driver of the host that uses the clock keeps it on; and `echo on` to the device's \
     power/control in sysfs, where its bus or its power domain turns clocks on (pm_runtime)";

/// A clock that a device's node names.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceClock {
    /// Its name in `clock-names`, else its number.
    pub name: String,
    /// What the host calls it, where the tree says.
    pub host: Option<String>,
    /// Its rate in Hz, where that is known.
    pub rate: Option<u32>,
    /// Whether it is on, where that is known.
    pub on: Option<bool>,
}

impl DeviceClock {
    /// Those of a node; none where its references are malformed.
    pub fn of(tree: &HostTree, node: &HostNode, states: &ClockStates) -> Vec<Self> {
        let names = node.strings("clock-names").ok().flatten().unwrap_or_default();
        let references = tree.references(node, "clocks", Some("#clock-cells")).unwrap_or_default();
        let clocks = references.iter().enumerate().filter_map(|(index, reference)| {
            let reference = reference.as_ref()?;
            let host = reference.clock_name().ok().flatten();
            Some(Self {
                name: names.get(index).map_or_else(|| index.to_string(), |&name| name.to_owned()),
                rate: tree.clock_rate(reference, SYSTEM_CLOCKS.as_ref()).ok().flatten(),
                on: host.as_deref().and_then(|name| states.is_on(name)),
                host,
            })
        });
        clocks.collect()
    }
}

/// Whether a clock is on, in words.
pub fn state(on: Option<bool>) -> &'static str {
    match on {
        Some(true) => "on",
        Some(false) => "off",
        None => "on or off, which /sys/kernel/debug/clk/clk_summary doesn't tell",
    }
}
