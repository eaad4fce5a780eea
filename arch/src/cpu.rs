//! CPUs: their optional features, and what the device tree says of them, their timers, PMU and PSCI.

use boot::fdt::{Cell, Node};

/// Optional features that a vCPU can have of the host's CPUs; KVM offers them only to those who ask
/// (Documentation/virt/kvm/api.rst, 4.82 KVM_ARM_VCPU_INIT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// The Scalable Vector Extension.
    pub sve: bool,
    /// Pointer authentication, by address and generic.
    pub pauth: bool,
    /// The performance monitors, version 3.
    pub pmu: bool,
}

impl CpuFeatures {
    /// All that strait knows.
    pub const ALL: Self = Self { sve: true, pauth: true, pmu: true };

    /// Those that both have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            sve: self.sve && other.sve,
            pauth: self.pauth && other.pauth,
            pmu: self.pmu && other.pmu,
        }
    }

    /// Their names, as on the command line.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [("sve", self.sve), ("pauth", self.pauth), ("pmu", self.pmu)];
        all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name)
    }
}

/// The PMU's private interrupt (PPI 7, INTID 23): Arm BSA 1.0, section 3.6 "PPI assignments".
pub(crate) const PMU_PPI: u32 = 7;

/// The generic timer's private interrupts in the binding's order: secure physical, non-secure
/// physical, virtual, hypervisor (BSA as above; KVM's default `KVM_ARM_VCPU_TIMER_CTRL`).
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// An `interrupts` entry of a level-sensitive, active-high private peripheral interrupt: its type,
/// number and flags (dt-bindings/interrupt-controller/arm-gic.h, irq.h). `cpu_mask` is
/// [`Gic::ppi_cpu_mask`](crate::gic::Gic::ppi_cpu_mask).
fn ppi(number: u32, cpu_mask: u32) -> [u32; 3] {
    const GIC_PPI: u32 = 1;
    const IRQ_TYPE_LEVEL_HIGH: u32 = 4;
    [GIC_PPI, number, IRQ_TYPE_LEVEL_HIGH | cpu_mask]
}

/// The `cpus` node of CPUs with these affinities
/// (Documentation/devicetree/bindings/arm/cpus.yaml).
pub fn cpus_node(affinities: impl IntoIterator<Item = u64>) -> Node {
    let cpus = affinities.into_iter().map(|affinity| {
        Node::at("cpu", affinity)
            .string("device_type", "cpu")
            .string("compatible", "arm,armv8")
            .string("enable-method", "psci")
            .u64("reg", affinity)
    });
    Node::new("cpus").u32("#address-cells", 2).u32("#size-cells", 0).with_children(cpus)
}

/// The `psci` node: calls go to KVM by `hvc` (Documentation/devicetree/bindings/arm/psci.yaml).
pub fn psci_node() -> Node {
    Node::new("psci")
        .strings("compatible", ["arm,psci-1.0", "arm,psci-0.2"])
        .string("method", "hvc")
}

/// The `timer` node (Documentation/devicetree/bindings/timer/arm,arch_timer.yaml); `cpu_mask` is the
/// interrupt controller's.
pub fn timer_node(cpu_mask: u32) -> Node {
    Node::new("timer")
        .string("compatible", "arm,armv8-timer")
        .cells("interrupts", TIMER_PPIS.iter().flat_map(|number| ppi(*number, cpu_mask)))
        .flag("always-on")
}

/// The `pmu` node (Documentation/devicetree/bindings/arm/pmu.yaml); `cpu_mask` is the interrupt
/// controller's.
pub fn pmu_node(cpu_mask: u32) -> Node {
    Node::new("pmu")
        .string("compatible", "arm,armv8-pmuv3")
        .cells("interrupts", ppi(PMU_PPI, cpu_mask).map(Cell::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_both_have_and_their_names() {
        let some = CpuFeatures { sve: false, ..CpuFeatures::ALL };
        assert_eq!(some.names().collect::<Vec<_>>(), ["pauth", "pmu"]);
        assert_eq!(CpuFeatures::ALL.and(some), some);
        assert_eq!(CpuFeatures::default().names().count(), 0);
    }
}
