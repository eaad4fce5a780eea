//! What the device tree says of CPUs, their timers, PMU and PSCI.

use boot::fdt::{Cell, Node};

use crate::Vcpu;
use crate::gic::Gic;

/// The PMU's private interrupt (PPI 7, INTID 23): Arm BSA 1.0, section 3.6 "PPI assignments".
pub(crate) const PMU_PPI: u32 = 7;

/// The generic timer's private interrupts in the binding's order: secure physical, non-secure
/// physical, virtual, hypervisor (BSA as above; KVM's default `KVM_ARM_VCPU_TIMER_CTRL`).
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// The second cell's type of an `interrupts` entry: a private peripheral interrupt.
const PPI: u32 = 1;

/// `IRQ_TYPE_LEVEL_HIGH` (dt-bindings/interrupt-controller/irq.h).
const LEVEL_HIGH: u32 = 4;

/// The `cpus` node (Documentation/devicetree/bindings/arm/cpus.yaml).
pub fn cpus_node<'a>(vcpus: impl IntoIterator<Item = &'a Vcpu>) -> Node {
    let cpus = vcpus.into_iter().map(|vcpu| {
        let affinity = vcpu.affinity();
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

/// The `timer` node (Documentation/devicetree/bindings/timer/arm,arch_timer.yaml).
pub fn timer_node(gic: &Gic) -> Node {
    let interrupts = TIMER_PPIS.iter().flat_map(|ppi| [PPI, *ppi, LEVEL_HIGH | gic.ppi_mask()]);
    Node::new("timer")
        .string("compatible", "arm,armv8-timer")
        .cells("interrupts", interrupts)
        .flag("always-on")
}

/// The `pmu` node (Documentation/devicetree/bindings/arm/pmu.yaml).
pub fn pmu_node(gic: &Gic) -> Node {
    Node::new("pmu")
        .string("compatible", "arm,armv8-pmuv3")
        .cells("interrupts", [PPI, PMU_PPI, LEVEL_HIGH | gic.ppi_mask()].map(Cell::from))
}
