//! GICv3 (Documentation/virt/kvm/devices/arm-vgic-v3.rst).

use std::ops::Range;

use boot::fdt::Node;
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};

use super::Gic;
use crate::Error;
use crate::layout::{GIC_DIST, GIC_REDIST, GIC_REDIST_SIZE};

pub(super) const DEVICE_TYPE: u32 = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3;

impl Gic {
    pub(super) fn place_v3(&self) -> Result<(), Error> {
        self.set(
            KVM_DEV_ARM_VGIC_GRP_ADDR,
            u64::from(KVM_VGIC_V3_ADDR_TYPE_DIST),
            &GIC_DIST.start,
            "place it",
        )?;
        // Bits 63-52 the number of redistributors, 51-16 the address, 11-0 the region's index.
        let region = (self.cpus << 52) | GIC_REDIST.start;
        self.set(
            KVM_DEV_ARM_VGIC_GRP_ADDR,
            u64::from(KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION),
            &region,
            "place its redistributors",
        )
    }
}

/// Its register frames with redistributors for `cpus` CPUs.
pub(super) fn ranges(cpus: u64) -> [(&'static str, Range<u64>); 2] {
    let end = GIC_REDIST.start + cpus * GIC_REDIST_SIZE;
    [("GIC distributor", GIC_DIST), ("GIC redistributors", GIC_REDIST.start..end)]
}

/// Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml.
pub(super) fn node() -> Node {
    Node::at("interrupt-controller", GIC_DIST.start).string("compatible", "arm,gic-v3")
}
