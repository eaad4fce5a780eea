//! Which of a host node's properties mean the same in a guest.

/// What becomes of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The guest has it as it is.
    Kept,
    /// The guest has one of its own, or what it says is the default.
    Made,
    /// The guest can't have it, for this reason.
    Dropped(&'static str),
}

/// Properties that are made anew, or that say nothing a guest need know.
const MADE: &[&str] = &[
    "#address-cells",
    "#size-cells",
    "clock-names",
    "clocks",
    "compatible",
    "dma-coherent",
    "dma-noncoherent",
    "interrupt-names",
    "interrupt-parent",
    "interrupts",
    "interrupts-extended",
    "name",
    "phandle",
    "ranges",
    "reg",
    "reg-names",
    "status",
];

const IOMMU: &str = "the host's IOMMU stays the host's; the guest's addresses are what it maps";
const CONTROLLER: &str = "it refers to a controller that stays the host's";
const POWER: &str = "the host keeps the device powered";
const PINS: &str = "the host keeps the device's pins as they are";
const MEMORY: &str = "it refers to memory of the host";
const CLOCKS: &str = "the host keeps the device's clocks as they are";
const NODES: &str = "it refers to other nodes of the host";

/// Properties that refer to what the guest doesn't have, and their companions
/// (Documentation/devicetree/bindings).
const DROPPED: &[(&str, &str)] = &[
    ("access-controllers", CONTROLLER),
    ("access-controller-names", CONTROLLER),
    ("assigned-clock-parents", CLOCKS),
    ("assigned-clock-rates", CLOCKS),
    ("assigned-clock-rates-u64", CLOCKS),
    ("assigned-clocks", CLOCKS),
    ("dma-names", CONTROLLER),
    ("dma-ranges", MEMORY),
    ("dmas", CONTROLLER),
    ("gpio-ranges", PINS),
    ("hwlocks", CONTROLLER),
    ("interconnect-names", CONTROLLER),
    ("interconnects", CONTROLLER),
    ("interrupt-map", CONTROLLER),
    ("interrupt-map-mask", CONTROLLER),
    ("io-channel-names", CONTROLLER),
    ("io-channels", CONTROLLER),
    ("iommu-map", IOMMU),
    ("iommu-map-mask", IOMMU),
    ("iommus", IOMMU),
    ("mbox-names", CONTROLLER),
    ("mboxes", CONTROLLER),
    ("memory-region", MEMORY),
    ("memory-region-names", MEMORY),
    ("msi-map", CONTROLLER),
    ("msi-map-mask", CONTROLLER),
    ("msi-parent", CONTROLLER),
    ("nvmem", MEMORY),
    ("nvmem-cell-names", MEMORY),
    ("nvmem-cells", MEMORY),
    ("operating-points-v2", POWER),
    ("phy-handle", CONTROLLER),
    ("phy-names", CONTROLLER),
    ("phys", CONTROLLER),
    ("power-domain-names", POWER),
    ("power-domains", POWER),
    ("pwm-names", CONTROLLER),
    ("pwms", CONTROLLER),
    ("remote-endpoint", NODES),
    ("reset-names", CONTROLLER),
    ("resets", CONTROLLER),
    ("sound-dai", NODES),
    ("sram", MEMORY),
    ("thermal-sensors", NODES),
    ("wakeup-source", POWER),
];

/// What becomes of the property of this name.
pub(super) fn fate(name: &str) -> Fate {
    if MADE.contains(&name) {
        return Fate::Made;
    }
    if let Some((_, reason)) = DROPPED.iter().find(|(dropped, _)| *dropped == name) {
        return Fate::Dropped(reason);
    }
    if name.starts_with("pinctrl-") {
        return Fate::Dropped(PINS);
    }
    if name.ends_with("-supply") {
        return Fate::Dropped(POWER);
    }
    if matches!(name, "gpio" | "gpios") || name.ends_with("-gpio") || name.ends_with("-gpios") {
        return Fate::Dropped(PINS);
    }
    Fate::Kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_the_host_are_dropped_and_plain_values_kept() {
        let cases = [
            ("arm,pl330-broken-no-flushp", Fate::Kept),
            ("#dma-cells", Fate::Kept),
            ("current-speed", Fate::Kept),
            ("iommus", Fate::Dropped(IOMMU)),
            ("vdd-supply", Fate::Dropped(POWER)),
            ("pinctrl-0", Fate::Dropped(PINS)),
            ("pinctrl-names", Fate::Dropped(PINS)),
            ("reset-gpios", Fate::Dropped(PINS)),
            ("cs-gpio", Fate::Dropped(PINS)),
            ("reg", Fate::Made),
            ("status", Fate::Made),
            ("dma-coherent", Fate::Made),
        ];
        for (name, expected) in cases {
            assert_eq!(fate(name), expected, "{name}");
        }
    }

    #[test]
    fn no_property_is_both_made_and_dropped() {
        for (name, _) in DROPPED {
            assert!(!MADE.contains(name), "{name}");
        }
    }
}
