//! Clocks of devices that are off on the host.

use boot::fdt::host::{ClockStates, HostTree, SYSTEM_CLOCKS};

use super::System;
use super::finding::Finding;
use super::kind::{ConfinedDevices, Kind};
use crate::host_clocks::{DeviceClock, KEEP_ON};

/// Which clocks of devices that an IOMMU confines are off; nothing where the host doesn't tell of clocks, or
/// no device's node names any that it tells of.
#[cold]
pub fn findings(system: &System, confined: &ConfinedDevices) -> Option<Finding> {
    let states = ClockStates::read(SYSTEM_CLOCKS.as_ref());
    let tree = HostTree::at(&system.host.device_tree()).ok()?;
    let (mut off, mut on) = (Vec::new(), 0);
    for device in [Kind::Platform, Kind::Amba].into_iter().flat_map(|kind| confined.devices(kind)) {
        let node = device.of_node().ok().flatten().and_then(|node| tree.node_alone(&node).ok());
        for clock in node.iter().flat_map(|node| DeviceClock::of(&tree, node, &states)) {
            match clock.on {
                Some(true) => on += 1,
                Some(false) => off.push(format!("{} of {}", clock.name, device.name())),
                None => {}
            }
        }
    }
    finding(&off, on)
}

fn finding(off: &[String], on: usize) -> Option<Finding> {
    const SUBJECT: &str = "clocks";
    if !off.is_empty() {
        let text = format!("off on the host, where strait turns on none: {}", off.join(", "));
        return Some(Finding::degraded(SUBJECT, text, KEEP_ON));
    }
    let text = format!("on: {on} that devices' nodes name");
    (on > 0).then(|| Finding::fine(SUBJECT, text))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn clocks_that_are_off_are_named() {
        assert_eq!(finding(&[], 0), None);
        assert_eq!(finding(&[], 2).unwrap().level, Level::Fine);
        let off = finding(&["apb_pclk of 1.dma".into()], 2).unwrap();
        assert_eq!(off.level, Level::Degraded);
        assert!(off.text.ends_with(": apb_pclk of 1.dma"), "{}", off.text);
        assert!(off.help.unwrap().contains("clk_ignore_unused"));
    }
}
