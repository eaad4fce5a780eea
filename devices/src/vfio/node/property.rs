//! What a host node's property means, by its name: a blob doesn't tell a phandle from a number.
//!
//! The numbers don't either: phandles are small, and half of all numbers in the properties of
//! Linux' own boards are some node's phandle. What a property holds is fixed by its binding, so the
//! names decide.

/// What a property is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Numbers, text or nothing: the same in the guest.
    Plain,
    /// Made for the guest from what it has of the device.
    Made,
    /// It means nothing in a guest, for this reason.
    Never(&'static str),
    /// Phandles, each followed by as many cells as its node's property of the first name says. If
    /// one leads out of the device, the guest can't have it, for the second reason.
    List(&'static str, &'static str),
    /// Phandles, each followed by as many cells. If one leads out of the device, the guest can't
    /// have it, for this reason.
    Groups(usize, &'static str),
    /// A phandle, or several, with or without cells behind. If the first leads out of the device,
    /// the guest can't have it, for this reason.
    Phandles(&'static str),
    /// The same, but with some devices a flag or a number.
    Likely(&'static str),
    /// It goes with this other property.
    With(&'static str),
}

use Kind::{Groups, Likely, List, Made, Never, Phandles, Plain, With};

const IOMMU: &str = "the host's IOMMU stays the host's; the guest's addresses are what it maps";
const CONTROLLER: &str = "it refers to a controller that stays the host's";
const POWER: &str = "the host keeps the device powered";
const PINS: &str = "the host keeps the device's pins as they are";
const MEMORY: &str = "it refers to memory of the host";
const CLOCKS: &str = "the host keeps the device's clocks as they are";
const NODES: &str = "it refers to a node that stays the host's";
/// Why interrupts are left out that aren't the device's.
pub(super) const INTERRUPTS: &str = "VFIO hands over the device's own interrupts only";

/// Names that say it all (Documentation/devicetree/bindings; Linux drivers/of/property.c has most of
/// the lists and the properties that count their cells).
const KINDS: &[(&str, Kind)] = &[
    ("#address-cells", Made),
    ("#size-cells", Made),
    ("access-controller-names", With("access-controllers")),
    ("access-controllers", List("#access-controller-cells", CONTROLLER)),
    ("assigned-clock-parents", List("#clock-cells", CLOCKS)),
    ("assigned-clock-rates", With("assigned-clocks")),
    ("assigned-clock-rates-u64", With("assigned-clocks")),
    ("assigned-clocks", List("#clock-cells", CLOCKS)),
    ("clock-names", Made),
    ("clocks", Made),
    ("compatible", Made),
    ("cooling-device", List("#cooling-cells", NODES)),
    ("dma-coherent", Made),
    ("dma-names", With("dmas")),
    ("dma-ranges", Made),
    ("dmas", List("#dma-cells", CONTROLLER)),
    ("gpio-ranges", Groups(3, PINS)),
    ("gpio-ranges-group-names", With("gpio-ranges")),
    ("hwlock-names", With("hwlocks")),
    ("hwlocks", List("#hwlock-cells", CONTROLLER)),
    ("interconnect-names", With("interconnects")),
    ("interconnects", List("#interconnect-cells", CONTROLLER)),
    ("interrupt-map", Never(INTERRUPTS)),
    ("interrupt-map-mask", With("interrupt-map")),
    ("interrupt-names", Made),
    ("interrupt-parent", Made),
    ("interrupts", Made),
    ("interrupts-extended", Made),
    ("io-backends", List("#io-backend-cells", CONTROLLER)),
    ("io-channel-names", With("io-channels")),
    ("io-channels", List("#io-channel-cells", CONTROLLER)),
    ("iommu-map", Never(IOMMU)),
    ("iommu-map-mask", Never(IOMMU)),
    ("iommus", List("#iommu-cells", IOMMU)),
    ("mbox-names", With("mboxes")),
    ("mboxes", List("#mbox-cells", CONTROLLER)),
    ("memory-region", Phandles(MEMORY)),
    ("memory-region-names", With("memory-region")),
    ("msi-map", Never(CONTROLLER)),
    ("msi-map-mask", Never(CONTROLLER)),
    ("msi-parent", Phandles(CONTROLLER)),
    ("msi-ranges", Phandles(CONTROLLER)),
    ("mux-control-names", With("mux-controls")),
    ("mux-controls", List("#mux-control-cells", CONTROLLER)),
    ("mux-states", List("#mux-state-cells", CONTROLLER)),
    ("nvmem", Phandles(MEMORY)),
    ("nvmem-cell-names", With("nvmem-cells")),
    ("nvmem-cells", Phandles(MEMORY)),
    ("operating-points-v2", Phandles(POWER)),
    ("phy-handle", Phandles(CONTROLLER)),
    ("phy-names", With("phys")),
    ("phys", List("#phy-cells", CONTROLLER)),
    ("pinctrl-names", With("pinctrl-0")),
    ("power-domain-names", With("power-domains")),
    ("power-domains", List("#power-domain-cells", POWER)),
    ("pwm-names", With("pwms")),
    ("pwms", List("#pwm-cells", CONTROLLER)),
    ("ranges", Made),
    ("reg", Made),
    ("reg-names", Made),
    ("remote-endpoint", Phandles(NODES)),
    ("required-opps", Phandles(POWER)),
    ("reset-names", With("resets")),
    ("resets", List("#reset-cells", CONTROLLER)),
    ("sound-dai", List("#sound-dai-cells", NODES)),
    ("sram", Phandles(MEMORY)),
    ("status", Made),
    ("thermal-sensors", List("#thermal-sensor-cells", NODES)),
    ("trigger-sources", List("#trigger-source-cells", NODES)),
    ("wakeup-source", Never("a guest doesn't wake the host")),
];

/// The other properties whose type is phandle or phandle-array in the schemas of Linux 6.12
/// (Documentation/devicetree/bindings), sorted.
const SCHEMAS: &str = include_str!("phandles.txt");

/// What the property of this name is.
pub(super) fn kind(name: &str) -> Kind {
    if let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == name) {
        return *kind;
    }
    if name.starts_with("pinctrl-") {
        return Phandles(PINS);
    }
    if name.ends_with("-supply") {
        return Phandles(POWER);
    }
    let gpios = ["gpio", "gpios"].iter().any(|end| {
        name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('-'))
    });
    // How many there are is a number.
    if gpios && !name.ends_with("nr-gpios") {
        return List("#gpio-cells", PINS);
    }
    if SCHEMAS.lines().any(|known| known == name) || sounds_like_phandle(name) {
        return Likely(NODES);
    }
    Plain
}

/// How properties without a schema are called that hold phandles: with the 47 boards on which this
/// was tried, these endings find every one.
fn sounds_like_phandle(name: &str) -> bool {
    let base = name.rsplit(',').next().unwrap_or(name);
    base.starts_with("regmap-")
        || base.split('-').any(|word| matches!(word, "syscon" | "grf" | "sysreg" | "phandle"))
        || ["-handle", "-parent", "system-controller"].iter().any(|ending| base.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_properties_hold() {
        let cases = [
            ("arm,pl330-broken-no-flushp", Plain),
            ("#dma-cells", Plain),
            ("current-speed", Plain),
            ("reg-io-width", Plain),
            ("interrupt-controller", Plain),
            ("gpio-controller", Plain),
            ("iommus", List("#iommu-cells", IOMMU)),
            ("vdd-supply", Phandles(POWER)),
            ("pinctrl-0", Phandles(PINS)),
            ("pinctrl-names", With("pinctrl-0")),
            ("reset-gpios", List("#gpio-cells", PINS)),
            ("cs-gpio", List("#gpio-cells", PINS)),
            ("gpios", List("#gpio-cells", PINS)),
            ("snps,nr-gpios", Plain),
            ("gpio-ranges", Groups(3, PINS)),
            ("snps,axi-config", Likely(NODES)),
            ("rockchip,grf", Likely(NODES)),
            ("vendor,top-grf", Likely(NODES)),
            ("vendor,syscon", Likely(NODES)),
            ("reg", Made),
            ("status", Made),
            ("dma-coherent", Made),
        ];
        for (name, expected) in cases {
            assert_eq!(kind(name), expected, "{name}");
        }
    }

    #[test]
    fn every_name_is_there_once_and_in_order() {
        let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        let schemas: Vec<&str> = SCHEMAS.lines().collect();
        assert!(schemas.is_sorted_by(|a, b| a < b));
        assert!(schemas.iter().all(|name| !names.contains(name)));
    }

    #[test]
    fn what_goes_with_another_goes_with_one_that_is_known() {
        for (name, kind) in KINDS {
            if let With(other) = kind {
                assert!(!matches!(super::kind(other), Plain | Made | With(_)), "{name}");
            }
        }
    }
}
