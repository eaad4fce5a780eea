//! The guest's interrupt controller: KVM's in-kernel vGIC.

mod its;
mod v2;
mod v3;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use boot::fdt::{Label, Node};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, kvm_create_device, kvm_device_attr,
};
use kvm_ioctls::DeviceFd;

use self::its::Its;
pub use self::its::LABEL as ITS_LABEL;
use crate::{Error, Vm, layout};

/// The label of the interrupt controller's node, for `interrupt-parent`.
pub const LABEL: &str = "gic";

/// A GIC architecture version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// GICv2: at most eight CPUs, no message-signalled interrupts.
    V2,
    /// GICv3.
    V3,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "GICv2",
            Self::V3 => "GICv3",
        })
    }
}

impl Version {
    /// The version this host offers: GICv3 where it has it, else GICv2.
    ///
    /// # Errors
    ///
    /// It offers neither.
    pub fn of_host(vm: &Vm) -> Result<Self, Error> {
        [Self::V3, Self::V2]
            .into_iter()
            .find(|version| version.is_offered(vm))
            .ok_or(Error::NoGic("interrupt controller strait knows (GICv3, GICv2)"))
    }

    /// Whether this host's KVM can make such a GIC.
    pub fn is_offered(self, vm: &Vm) -> bool {
        let mut device = kvm_create_device {
            type_: self.device_type(),
            flags: kvm_bindings::KVM_CREATE_DEVICE_TEST,
            ..Default::default()
        };
        // In test mode no descriptor comes back, which kvm-ioctls' create_device would wrap.
        vm.test_device(&mut device)
    }

    /// The most CPUs it can have.
    pub fn max_cpus(self) -> u64 {
        match self {
            Self::V2 => v2::MAX_CPUS,
            Self::V3 => layout::MAX_CPUS,
        }
    }

    /// The name as it stands in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::V2 => "GICv2",
            Self::V3 => "GICv3",
        }
    }

    fn device_type(self) -> u32 {
        match self {
            Self::V2 => v2::DEVICE_TYPE,
            Self::V3 => v3::DEVICE_TYPE,
        }
    }
}

/// The vGIC of a VM.
#[derive(Debug)]
pub struct Gic {
    device: DeviceFd,
    version: Version,
    cpus: u64,
    spis: u32,
    its: Option<Its>,
}

impl Gic {
    /// Makes and initialises the GIC, with SPIs 0 to `spis` - 1 and all vCPUs created before.
    ///
    /// # Errors
    ///
    /// KVM refused a step.
    pub fn new(vm: &Vm, version: Version, cpus: u64, spis: u32) -> Result<Self, Error> {
        let mut device = kvm_create_device { type_: version.device_type(), ..Default::default() };
        let device = vm
            .fd()
            .create_device(&mut device)
            .map_err(Error::kvm(format!("create a {version}")))?;
        // Counts SGIs and PPIs too, in multiples of 32 and at least 64
        // (Documentation/virt/kvm/devices/arm-vgic-v3.rst, KVM_DEV_ARM_VGIC_GRP_NR_IRQS).
        let irqs = (32 + spis).next_multiple_of(32).clamp(64, 1024);
        let gic = Self { device, version, cpus, spis: irqs - 32, its: None };
        match version {
            Version::V2 => gic.place_v2()?,
            Version::V3 => gic.place_v3()?,
        }
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &irqs, "set its number of interrupts")?;
        gic.set_plain(
            KVM_DEV_ARM_VGIC_GRP_CTRL,
            u64::from(KVM_DEV_ARM_VGIC_CTRL_INIT),
            0,
            "initialise it",
        )?;
        Ok(gic)
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Gives it an ITS, and so message-signalled interrupts, if it can have one: a GICv3 where the
    /// host has it. Before the guest runs.
    ///
    /// # Errors
    ///
    /// KVM refused a step.
    pub fn add_its(&mut self, vm: &Vm) -> Result<(), Error> {
        if self.version == Version::V3 && Its::is_offered(vm) {
            self.its = Some(Its::new(vm)?);
        }
        Ok(())
    }

    /// Whether it has an ITS.
    pub fn has_its(&self) -> bool {
        self.its.is_some()
    }

    /// How many SPIs it has.
    pub fn spis(&self) -> u32 {
        self.spis
    }

    /// Its register frames in the guest, with their names.
    pub fn ranges(&self) -> Vec<(&'static str, Range<u64>)> {
        let mut ranges = self.own_ranges();
        ranges.extend(self.its.is_some().then(its::range));
        ranges
    }

    /// Those of the GIC itself.
    fn own_ranges(&self) -> Vec<(&'static str, Range<u64>)> {
        match self.version {
            Version::V2 => v2::ranges().into(),
            Version::V3 => v3::ranges(self.cpus).into(),
        }
    }

    /// The bits that the third cell of a PPI's `interrupts` entry has beside its trigger: with
    /// GICv2 a mask of the CPUs (Documentation/devicetree/bindings/interrupt-controller/arm,gic.yaml).
    pub fn ppi_mask(&self) -> u32 {
        match self.version {
            Version::V2 => ((1 << self.cpus.min(8)) - 1) << 8,
            Version::V3 => 0,
        }
    }

    /// Configures SPIs as level-sensitive before the guest runs.
    ///
    /// KVM resets every SPI to edge-triggered, and a level that rises before the guest writes
    /// GICD_ICFGR would be latched as an edge: a guest that then clears the latch (ICPENDR) loses
    /// an interrupt whose line is still high.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn set_level_sensitive(&self, spis: impl IntoIterator<Item = u32>) -> Result<(), Error> {
        // GICD_ICFGR<n>: two bits an interrupt, 16 interrupts a register (IHI 0069H 12.9.9); the
        // high bit of the two is set for edge-triggered.
        let mut edge_bits = BTreeMap::<u64, u32>::new();
        for spi in spis {
            let intid = u64::from(spi) + 32;
            *edge_bits.entry(0xc00 + intid / 16 * 4).or_default() |= 0b10 << (intid % 16 * 2);
        }
        for (register, mask) in edge_bits {
            let value = self.read_distributor(register)? & !mask;
            self.set(
                KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
                register,
                &value,
                "configure interrupts as level-sensitive",
            )?;
        }
        Ok(())
    }

    /// Whether the guest has an SPI enabled. While no vCPU runs.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn is_enabled(&self, spi: u32) -> Result<bool, Error> {
        // GICD_ISENABLER<n>: one bit an interrupt (IHI 0069H 12.9.22).
        let intid = u64::from(spi) + 32;
        Ok(self.read_distributor(0x100 + intid / 32 * 4)? >> (intid % 32) & 1 != 0)
    }

    /// The `interrupt-controller` node.
    pub fn node(&self) -> Node {
        let node = match self.version {
            Version::V2 => v2::node(),
            Version::V3 => v3::node(),
        };
        let frames = self.own_ranges().into_iter();
        node.reg(frames.map(|(_, range)| (range.start, range.end - range.start)))
            .label(Label::new(LABEL))
            .flag("interrupt-controller")
            .u32("#interrupt-cells", 3)
            .u32("#address-cells", 2)
            .u32("#size-cells", 2)
            .flag("ranges")
            .with_children(self.its.is_some().then(its::node))
    }

    fn read_distributor(&self, register: u64) -> Result<u32, Error> {
        let mut value: u32 = 0;
        let mut attr = kvm_device_attr {
            group: KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
            attr: register,
            addr: (&raw mut value).addr() as u64,
            flags: 0,
        };
        // SAFETY: the distributor group reads one u32 to `addr`, which points to `value`.
        unsafe { self.device.get_device_attr(&mut attr) }
            .map_err(Error::kvm(format!("read {register:#x} of the {}", self.version)))?;
        Ok(value)
    }

    /// Sets an attribute whose value lies in memory.
    fn set<T>(&self, group: u32, attr: u64, value: &T, what: &str) -> Result<(), Error> {
        self.set_plain(group, attr, std::ptr::from_ref(value).addr() as u64, what)
    }

    fn set_plain(&self, group: u32, attr: u64, addr: u64, what: &str) -> Result<(), Error> {
        let attr = kvm_device_attr { group, attr, addr, flags: 0 };
        self.device.set_device_attr(&attr).map_err(Error::kvm(format!("{what} ({})", self.version)))
    }
}
