//! The guest's interrupt controller: KVM's in-kernel vGIC, version 2 or 3, and with version 3 an
//! ITS, which takes message-signalled interrupts of PCI functions to its CPUs
//! (Documentation/virt/kvm/devices/arm-vgic.rst, arm-vgic-v3.rst, arm-vgic-its.rst).

mod reset;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use boot::fdt::Node;
use kvm_bindings::{
    KVM_CREATE_DEVICE_TEST, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::DeviceFd;

use crate::layout::{
    GIC_DIST, GIC_ITS, GIC_REDIST, GIC_REDIST_SIZE, GICV2_CPU, MAX_GICV3_CPUS, spi,
};
use crate::{Error, Vm};

pub use self::reset::ResetState;

/// The label of the interrupt controller's node, for `interrupt-parent`.
pub const LABEL: &str = "gic";

/// The label of the ITS' node, for `msi-map`.
pub const ITS_LABEL: &str = "its";

/// INTID of SPI 0: 0 to 31 are private to each CPU (IHI 0069H, 2.2 "INTIDs").
const SPI_BASE: u32 = 32;

/// The most CPUs of a GICv2: GICD_ITARGETSR has eight bits an interrupt (IHI 0048B 4.3.12).
const MAX_GICV2_CPUS: u64 = 8;

/// How long a call is tried for which KVM needs all vCPUs.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// A GIC architecture version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// GICv2: at most eight CPUs; message-signalled interrupts are SPIs, by a frame beside it.
    V2,
    /// GICv3.
    V3,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Version {
    /// The newest version that this host's KVM offers.
    ///
    /// # Errors
    ///
    /// It offers neither, or doesn't tell.
    pub fn newest(vm: &Vm) -> Result<Self, Error> {
        for version in [Self::V3, Self::V2] {
            if version.is_offered(vm)? {
                return Ok(version);
            }
        }
        Err(Error::NoGic("interrupt controller strait knows (GICv3, GICv2)"))
    }

    /// Whether this host's KVM can make such a GIC.
    ///
    /// # Errors
    ///
    /// It doesn't tell: the host is out of memory, say.
    pub fn is_offered(self, vm: &Vm) -> Result<bool, Error> {
        is_offered(vm, self.device_type())
    }

    /// The most CPUs it can have.
    pub fn max_cpus(self) -> u64 {
        match self {
            Self::V2 => MAX_GICV2_CPUS,
            Self::V3 => MAX_GICV3_CPUS,
        }
    }

    /// Its name, such as `GICv3`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V2 => "GICv2",
            Self::V3 => "GICv3",
        }
    }

    fn device_type(self) -> u32 {
        match self {
            Self::V2 => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
            Self::V3 => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        }
    }

    /// The `compatible` of its node (Documentation/devicetree/bindings/interrupt-controller,
    /// arm,gic.yaml and arm,gic-v3.yaml).
    fn compatible(self) -> &'static str {
        match self {
            Self::V2 => "arm,cortex-a15-gic",
            Self::V3 => "arm,gic-v3",
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
    /// Keeps nothing alive that the VM doesn't; that it is there says that the guest has an ITS.
    its: Option<DeviceFd>,
}

impl Gic {
    /// Makes and initialises the GIC, with SPIs 0 to `spis` - 1 and all vCPUs created before.
    ///
    /// # Errors
    ///
    /// KVM refused a step.
    pub fn new(vm: &Vm, version: Version, cpus: u64, spis: u32) -> Result<Self, Error> {
        let device = create(vm, version.device_type(), version.name())?;
        // Counts SGIs and PPIs too, in multiples of 32 and at least 64
        // (arm-vgic-v3.rst, KVM_DEV_ARM_VGIC_GRP_NR_IRQS).
        let irqs = (SPI_BASE + spis.min(spi::END)).next_multiple_of(32).max(64);
        let gic = Self { device, version, cpus, spis: irqs - SPI_BASE, its: None };
        match version {
            Version::V2 => {
                gic.place(KVM_VGIC_V2_ADDR_TYPE_DIST, GIC_DIST.start)?;
                gic.place(KVM_VGIC_V2_ADDR_TYPE_CPU, GICV2_CPU.start)?;
            }
            Version::V3 => {
                gic.place(KVM_VGIC_V3_ADDR_TYPE_DIST, GIC_DIST.start)?;
                // Bits 63-52 the number of redistributors, 51-16 the address, 11-0 the region's
                // index (arm-vgic-v3.rst).
                let region = (cpus << 52) | GIC_REDIST.start;
                gic.place(KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, region)?;
            }
        }
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &irqs, "set the number of interrupts")?;
        initialise(&gic.device, version.name())?;
        Ok(gic)
    }

    /// Gives it an ITS, and so message-signalled interrupts, if it can have one: a GICv3 where the
    /// host has it. Before the guest runs.
    ///
    /// # Errors
    ///
    /// KVM refused a step.
    #[cold]
    pub fn add_its(&mut self, vm: &Vm) -> Result<(), Error> {
        const TYPE: u32 = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS;
        if self.version == Version::V3 && is_offered(vm, TYPE)? {
            let its = create(vm, TYPE, "ITS")?;
            let address = GIC_ITS.start;
            set(&its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE.into(), &address)
                .map_err(|e| Error::kvm("place the ITS", e))?;
            initialise(&its, "ITS")?;
            self.its = Some(its);
        }
        Ok(())
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether it has an ITS.
    pub fn has_its(&self) -> bool {
        self.its.is_some()
    }

    /// How many SPIs it has.
    pub fn spis(&self) -> u32 {
        self.spis
    }

    /// Its register frames in the guest (GPA), with their names; the ITS' is the last.
    pub fn frames(&self) -> Vec<(&'static str, Range<u64>)> {
        let mut frames = Vec::from(self.own_frames());
        frames.extend(self.its.is_some().then_some(("GIC ITS", GIC_ITS)));
        frames
    }

    /// Those of the GIC itself.
    fn own_frames(&self) -> [(&'static str, Range<u64>); 2] {
        let second = match self.version {
            Version::V2 => ("GIC CPU interface", GICV2_CPU),
            Version::V3 => {
                let end = GIC_REDIST.start + self.cpus * GIC_REDIST_SIZE;
                ("GIC redistributors", GIC_REDIST.start..end)
            }
        };
        [("GIC distributor", GIC_DIST), second]
    }

    /// The bits that the flags of a PPI's `interrupts` entry have beside its trigger: with GICv2 a
    /// mask of the CPUs (Documentation/devicetree/bindings/interrupt-controller/arm,gic.yaml).
    pub fn ppi_cpu_mask(&self) -> u32 {
        match self.version {
            Version::V2 => ((1 << self.cpus.min(MAX_GICV2_CPUS)) - 1) << 8,
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
            let intid = u64::from(spi + SPI_BASE);
            *edge_bits.entry(0xc00 + intid / 16 * 4).or_default() |= 0b10 << (intid % 16 * 2);
        }
        for (register, mask) in edge_bits {
            let value = self.read_distributor(register)? & !mask;
            let action = "set the triggers";
            self.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, register, &value, action)?;
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
        let intid = u64::from(spi + SPI_BASE);
        Ok(self.read_distributor(0x100 + intid / 32 * 4)? >> (intid % 32) & 1 != 0)
    }

    /// The `interrupt-controller` node.
    pub fn node(&self) -> Node {
        let frames = self.own_frames().into_iter();
        let its = self.its.is_some().then(|| {
            Node::at("msi-controller", GIC_ITS.start)
                .label(ITS_LABEL)
                .string("compatible", "arm,gic-v3-its")
                .flag("msi-controller")
                .u32("#msi-cells", 1)
                .reg([(GIC_ITS.start, GIC_ITS.end - GIC_ITS.start)])
        });
        Node::at("interrupt-controller", GIC_DIST.start)
            .string("compatible", self.version.compatible())
            .reg(frames.map(|(_, range)| (range.start, range.end - range.start)))
            .label(LABEL)
            .flag("interrupt-controller")
            .u32("#interrupt-cells", 3)
            .u32("#address-cells", 2)
            .u32("#size-cells", 2)
            .flag("ranges")
            .with_children(its)
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
        when_free(|| unsafe { self.device.get_device_attr(&mut attr) })
            .map_err(|e| Error::kvm(format!("read {register:#x} of the {}", self.version), e))?;
        Ok(value)
    }

    /// Places a register frame at an address (GPA).
    fn place(&self, frame: u32, address: u64) -> Result<(), Error> {
        self.set(KVM_DEV_ARM_VGIC_GRP_ADDR, frame.into(), &address, "place the registers")
    }

    fn set<T>(&self, group: u32, attr: u64, value: &T, action: &str) -> Result<(), Error> {
        set(&self.device, group, attr, value)
            .map_err(|e| Error::kvm(format!("{action} of the {}", self.version), e))
    }
}

/// Whether KVM can make a device of this type. In test mode no descriptor comes back, which
/// kvm-ioctls' `create_device` would wrap.
fn is_offered(vm: &Vm, device_type: u32) -> Result<bool, Error> {
    let flags = KVM_CREATE_DEVICE_TEST;
    vm.test_device(&mut kvm_create_device { type_: device_type, flags, ..Default::default() })
}

fn create(vm: &Vm, device_type: u32, name: &str) -> Result<DeviceFd, Error> {
    vm.fd()
        .create_device(&mut kvm_create_device { type_: device_type, ..Default::default() })
        .map_err(|e| Error::kvm(format!("create the guest's {name}"), e))
}

/// Sets an attribute whose value KVM reads from memory.
fn set<T>(device: &DeviceFd, group: u32, attr: u64, value: &T) -> Result<(), kvm_ioctls::Error> {
    let addr = std::ptr::from_ref(value).addr() as u64;
    when_free(|| device.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 }))
}

/// Makes a call for which KVM needs all vCPUs for itself. It refuses while another thread has one
/// (arm-vgic-v3.rst, `-EBUSY`): one that runs its guest, which is an error, or a debugger's for the time of a
/// call, which is soon over.
fn when_free<T>(
    mut call: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    let mut deadline = None;
    loop {
        match call() {
            Err(error) if error.errno() == libc::EBUSY => {
                let now = Instant::now();
                if now >= *deadline.get_or_insert(now + BUSY_TIMEOUT) {
                    return Err(error);
                }
                std::hint::spin_loop();
            }
            result => return result,
        }
    }
}

fn initialise(device: &DeviceFd, name: &str) -> Result<(), Error> {
    let (group, attr) = (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into());
    device
        .set_device_attr(&kvm_device_attr { group, attr, addr: 0, flags: 0 })
        .map_err(|e| Error::kvm(format!("initialise the guest's {name}"), e))
}
