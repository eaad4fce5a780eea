//! What a host node's property is, by its name: in a blob, a phandle is a number like any other.
//!
//! The numbers don't either: phandles are small, and half of all numbers in the properties of
//! Linux' own boards are some node's phandle. What a property holds is fixed by its binding, so the
//! names decide.

/// What a property is. Where it has a reason, that is why the guest can't have one that refers to a
/// node that it hasn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Numbers, text or nothing: the same in the guest.
    Plain,
    /// Generated for the guest from what it has of the device.
    Generated,
    /// Never in a guest.
    Dropped(&'static str),
    /// Phandles, each followed by as many cells as its node's property of the first name says.
    References(&'static str, &'static str),
    /// Phandles, each followed by as many cells.
    Groups(usize, &'static str),
    /// A phandle, or several, with or without cells behind; the first one decides.
    Phandles(&'static str),
    /// The same, but with some devices a flag or a number.
    MaybePhandles(&'static str),
    /// Kept or dropped with this other property.
    With(&'static str),
}

use Kind::{Dropped, Generated, Groups, MaybePhandles, Phandles, Plain, References, With};

const IOMMU: &str = "the host's IOMMU stays the host's; the guest's addresses are what it maps";
const CONTROLLER: &str = "it refers to a controller that stays the host's";
const POWER: &str = "the host keeps the device powered";
const PINS: &str = "the host keeps the device's pins as they are";
const MEMORY: &str = "it refers to memory of the host";
const CLOCKS: &str = "the host keeps the device's clocks as they are";
const NODES: &str = "it refers to a node that stays the host's";
/// Why interrupts are left out that aren't the device's.
pub(super) const INTERRUPTS: &str = "VFIO hands over the device's own interrupts only";

/// Properties by their names (Documentation/devicetree/bindings; Linux drivers/of/property.c has most of
/// the lists and the properties that count their cells).
const KINDS: &[(&str, Kind)] = &[
    ("#address-cells", Generated),
    ("#size-cells", Generated),
    ("access-controller-names", With("access-controllers")),
    ("access-controllers", References("#access-controller-cells", CONTROLLER)),
    ("assigned-clock-parents", References("#clock-cells", CLOCKS)),
    ("assigned-clock-rates", With("assigned-clocks")),
    ("assigned-clock-rates-u64", With("assigned-clocks")),
    ("assigned-clocks", References("#clock-cells", CLOCKS)),
    ("clock-names", Generated),
    ("clocks", Generated),
    ("compatible", Generated),
    ("cooling-device", References("#cooling-cells", NODES)),
    ("dma-coherent", Generated),
    ("dma-names", With("dmas")),
    ("dma-ranges", Generated),
    ("dmas", References("#dma-cells", CONTROLLER)),
    ("gpio-ranges", Groups(3, PINS)),
    ("gpio-ranges-group-names", With("gpio-ranges")),
    ("hwlock-names", With("hwlocks")),
    ("hwlocks", References("#hwlock-cells", CONTROLLER)),
    ("interconnect-names", With("interconnects")),
    ("interconnects", References("#interconnect-cells", CONTROLLER)),
    ("interrupt-map", Dropped(INTERRUPTS)),
    ("interrupt-map-mask", With("interrupt-map")),
    ("interrupt-names", Generated),
    ("interrupt-parent", Generated),
    ("interrupts", Generated),
    ("interrupts-extended", Generated),
    ("io-backends", References("#io-backend-cells", CONTROLLER)),
    ("io-channel-names", With("io-channels")),
    ("io-channels", References("#io-channel-cells", CONTROLLER)),
    ("iommu-map", Dropped(IOMMU)),
    ("iommu-map-mask", Dropped(IOMMU)),
    ("iommus", References("#iommu-cells", IOMMU)),
    ("mbox-names", With("mboxes")),
    ("mboxes", References("#mbox-cells", CONTROLLER)),
    ("memory-region", Phandles(MEMORY)),
    ("memory-region-names", With("memory-region")),
    ("msi-map", Dropped(CONTROLLER)),
    ("msi-map-mask", Dropped(CONTROLLER)),
    ("msi-parent", Phandles(CONTROLLER)),
    ("msi-ranges", Phandles(CONTROLLER)),
    ("mux-control-names", With("mux-controls")),
    ("mux-controls", References("#mux-control-cells", CONTROLLER)),
    ("mux-states", References("#mux-state-cells", CONTROLLER)),
    ("nvmem", Phandles(MEMORY)),
    ("nvmem-cell-names", With("nvmem-cells")),
    ("nvmem-cells", Phandles(MEMORY)),
    ("operating-points-v2", Phandles(POWER)),
    ("phy-handle", Phandles(CONTROLLER)),
    ("phy-names", With("phys")),
    ("phys", References("#phy-cells", CONTROLLER)),
    ("pinctrl-names", With("pinctrl-0")),
    ("power-domain-names", With("power-domains")),
    ("power-domains", References("#power-domain-cells", POWER)),
    ("pwm-names", With("pwms")),
    ("pwms", References("#pwm-cells", CONTROLLER)),
    ("ranges", Generated),
    ("reg", Generated),
    ("reg-names", Generated),
    ("remote-endpoint", Phandles(NODES)),
    ("required-opps", Phandles(POWER)),
    ("reset-names", With("resets")),
    ("resets", References("#reset-cells", CONTROLLER)),
    ("sound-dai", References("#sound-dai-cells", NODES)),
    ("sram", Phandles(MEMORY)),
    ("status", Generated),
    ("thermal-sensors", References("#thermal-sensor-cells", NODES)),
    ("trigger-sources", References("#trigger-source-cells", NODES)),
    ("wakeup-source", Dropped("a guest doesn't wake the host")),
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
        return References("#gpio-cells", PINS);
    }
    if SCHEMAS.lines().any(|known| known == name) || sounds_like_phandle(name) {
        return MaybePhandles(NODES);
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
    fn kinds_follow_from_names() {
        let cases = [
            ("arm,pl330-broken-no-flushp", Plain),
            ("#dma-cells", Plain),
            ("current-speed", Plain),
            ("reg-io-width", Plain),
            ("interrupt-controller", Plain),
            ("gpio-controller", Plain),
            ("iommus", References("#iommu-cells", IOMMU)),
            ("vdd-supply", Phandles(POWER)),
            ("pinctrl-0", Phandles(PINS)),
            ("pinctrl-names", With("pinctrl-0")),
            ("reset-gpios", References("#gpio-cells", PINS)),
            ("cs-gpio", References("#gpio-cells", PINS)),
            ("gpios", References("#gpio-cells", PINS)),
            ("snps,nr-gpios", Plain),
            ("gpio-ranges", Groups(3, PINS)),
            ("snps,axi-config", MaybePhandles(NODES)),
            ("rockchip,grf", MaybePhandles(NODES)),
            ("vendor,top-grf", MaybePhandles(NODES)),
            ("vendor,syscon", MaybePhandles(NODES)),
            ("reg", Generated),
            ("status", Generated),
            ("dma-coherent", Generated),
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
    fn companions_go_with_references() {
        for (name, kind) in KINDS {
            if let With(other) = kind {
                assert!(!matches!(super::kind(other), Plain | Generated | With(_)), "{name}");
            }
        }
    }
}
