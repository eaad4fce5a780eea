//! The interrupt translation service, which takes message-signalled interrupts of PCI functions to
//! a GICv3's CPUs (Documentation/virt/kvm/devices/arm-vgic-its.rst).

use std::ops::Range;

use boot::fdt::{Label, Node};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_VGIC_ITS_ADDR_TYPE, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
};
use kvm_ioctls::DeviceFd;

use crate::layout::GIC_ITS;
use crate::{Error, Vm};

/// The label of its node, for `msi-map`.
pub const LABEL: &str = "its";

/// The ITS of a VM.
#[derive(Debug)]
pub(super) struct Its {
    // Keeps nothing alive that the VM doesn't; without it there would be nothing to show that it is.
    _device: DeviceFd,
}

impl Its {
    /// Whether this host's KVM can make one.
    pub(super) fn is_offered(vm: &Vm) -> bool {
        let mut device = description();
        device.flags = kvm_bindings::KVM_CREATE_DEVICE_TEST;
        vm.test_device(&mut device)
    }

    /// Makes and initialises it; the GIC must be initialised.
    #[cold]
    pub(super) fn new(vm: &Vm) -> Result<Self, Error> {
        let device =
            vm.fd().create_device(&mut description()).map_err(Error::kvm("create an ITS"))?;
        let address = GIC_ITS.start;
        let steps = [
            (
                "place the ITS",
                KVM_DEV_ARM_VGIC_GRP_ADDR,
                KVM_VGIC_ITS_ADDR_TYPE,
                (&raw const address).addr() as u64,
            ),
            ("initialise the ITS", KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0),
        ];
        for (what, group, attr, addr) in steps {
            let attr = kvm_device_attr { group, attr: attr.into(), addr, flags: 0 };
            device.set_device_attr(&attr).map_err(Error::kvm(what))?;
        }
        Ok(Self { _device: device })
    }
}

fn description() -> kvm_create_device {
    kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, ..Default::default() }
}

/// Its register frames.
pub(super) fn range() -> (&'static str, Range<u64>) {
    ("GIC ITS", GIC_ITS)
}

/// Its node, below the GIC's
/// (Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml).
pub(super) fn node() -> Node {
    Node::at("msi-controller", GIC_ITS.start)
        .label(Label::new(LABEL))
        .string("compatible", "arm,gic-v3-its")
        .flag("msi-controller")
        .u32("#msi-cells", 1)
        .reg([(GIC_ITS.start, GIC_ITS.end - GIC_ITS.start)])
}
