//! GICv2 (Documentation/virt/kvm/devices/arm-vgic.rst).

use std::ops::Range;

use boot::fdt::Node;
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
};

use super::Gic;
use crate::Error;
use crate::layout::{GIC_DIST, GICV2_CPU};

pub(super) const DEVICE_TYPE: u32 = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2;

/// GICD_ITARGETSR has eight bits an interrupt (IHI 0048B 4.3.12).
pub(super) const MAX_CPUS: u64 = 8;

impl Gic {
    pub(super) fn place_v2(&self) -> Result<(), Error> {
        for (kind, range) in
            [(KVM_VGIC_V2_ADDR_TYPE_DIST, GIC_DIST), (KVM_VGIC_V2_ADDR_TYPE_CPU, GICV2_CPU)]
        {
            self.set(KVM_DEV_ARM_VGIC_GRP_ADDR, u64::from(kind), &range.start, "place it")?;
        }
        Ok(())
    }
}

/// Its register frames.
pub(super) fn ranges() -> [(&'static str, Range<u64>); 2] {
    [("GIC distributor", GIC_DIST), ("GIC CPU interface", GICV2_CPU)]
}

/// Documentation/devicetree/bindings/interrupt-controller/arm,gic.yaml.
pub(super) fn node() -> Node {
    Node::at("interrupt-controller", GIC_DIST.start).string("compatible", "arm,cortex-a15-gic")
}
