//! Resetting the GIC, which KVM does for the ITS alone: its registers are written as they were before the
//! guest ran.
//!
//! Pending and active states, priorities, targets, and enables of SPIs are zero then; groups and triggers, the
//! enables of SGIs and PPIs, and the CPU interfaces, are read before: KVM makes SGIs enabled
//! (`vgic_setup_private_irq`). The order is that of Documentation/virt/kvm/devices/arm-vgic-its.rst
//! ("ITS Restore Sequence") backwards: LPIs are disabled before the ITS is reset.

use std::ops::Range;

use kvm_bindings::{
    KVM_DEV_ARM_ITS_CTRL_RESET, KVM_DEV_ARM_VGIC_GRP_CPU_REGS, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, kvm_device_attr,
};

use super::{Gic, SPI_BASE, Version, set};
use crate::{Error, Vcpu};

/// The attribute group of ICC_*_EL1 (arm-vgic-v3.rst).
const CPU_SYSREGS: u32 = kvm_bindings::KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;

/// Registers of the distributor, and of the SGI and PPI frame of a redistributor (IHI 0069H, 12.8 and 12.10).
const CTLR: u64 = 0x000;
const IIDR: u64 = 0x008;
const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ITARGETSR: u64 = 0x800;
const ICFGR: u64 = 0xc00;
const CPENDSGIR: u64 = 0xf10;
const IROUTER: u64 = 0x6000;

/// Where the SGI and PPI frame of a redistributor is, and its own registers that have addresses of LPIs.
const SGI_FRAME: u64 = 0x1_0000;
const LPI_BASES: Range<u64> = 0x70..0x80;

/// Registers of a GICv2's CPU interface that software sets (IHI 0048B, 4.4): GICC_CTLR, PMR, BPR, ABPR, and
/// the active priorities.
const CPU_REGISTERS: [u64; 8] = [0x00, 0x04, 0x08, 0x1c, 0xd0, 0xd4, 0xd8, 0xdc];

/// ICC_PMR, BPR0, AP0R0 to 3, AP1R0 to 3, BPR1, CTLR, IGRPEN0 and 1 of EL1, by CRn, CRm and op2
/// (IHI 0069H, 12.2).
const SYSTEM_REGISTERS: [u64; 14] = [
    encoding(4, 6, 0),
    encoding(12, 8, 3),
    encoding(12, 8, 4),
    encoding(12, 8, 5),
    encoding(12, 8, 6),
    encoding(12, 8, 7),
    encoding(12, 9, 0),
    encoding(12, 9, 1),
    encoding(12, 9, 2),
    encoding(12, 9, 3),
    encoding(12, 12, 3),
    encoding(12, 12, 4),
    encoding(12, 12, 6),
    encoding(12, 12, 7),
];

const fn encoding(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

/// Registers as they were before the guest ran.
#[derive(Debug)]
pub struct ResetState {
    words: Vec<Saved<u32>>,
    system: Vec<Saved<u64>>,
    cpus: Vec<u64>,
}

/// A register by KVM's attribute.
#[derive(Debug)]
struct Saved<T> {
    group: u32,
    attr: u64,
    value: T,
}

impl Gic {
    /// Reads what [`reset`](Self::reset) writes; while none of these vCPUs, all there are, runs.
    ///
    /// # Errors
    ///
    /// KVM refused.
    #[cold]
    pub fn reset_state(&self, vcpus: &[Vcpu]) -> Result<ResetState, Error> {
        if self.version == Version::V2 {
            self.make_groups_writable();
        }
        let cpus: Vec<u64> = vcpus.iter().map(|vcpu| self.cpu(vcpu)).collect();
        let mut state = ResetState { words: Vec::new(), system: Vec::new(), cpus };
        for (group, attr) in self.kept(&state.cpus) {
            if let Some(value) = self.read(group, attr) {
                state.words.push(Saved { group, attr, value });
            }
        }
        if self.version == Version::V3 {
            for cpu in &state.cpus {
                // Of the active priorities there are as many as the host's have.
                let read = SYSTEM_REGISTERS.iter().filter_map(|register| {
                    let attr = cpu << 32 | register;
                    let value = self.read(CPU_SYSREGS, attr)?;
                    Some(Saved { group: CPU_SYSREGS, attr, value })
                });
                state.system.extend(read);
            }
        }
        Ok(state)
    }

    /// Resets it, and the ITS, while no vCPU runs. What drives a line of a level-triggered SPI lowers that
    /// before.
    ///
    /// # Errors
    ///
    /// KVM refused.
    #[cold]
    pub fn reset(&self, state: &ResetState) -> Result<(), Error> {
        self.write(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, CTLR, 0)?;
        let shared = SPI_BASE..SPI_BASE.saturating_add(self.spis);
        match self.version {
            Version::V2 => {
                for cpu in &state.cpus {
                    self.clear(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, cpu << 32, 0..SPI_BASE)?;
                    for register in (CPENDSGIR..).step_by(4).take(4) {
                        let attr = cpu << 32 | register;
                        self.write(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, attr, u32::MAX)?;
                    }
                }
                self.clear(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, shared.clone())?;
                self.zero(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, ITARGETSR, 4, shared)?;
            }
            Version::V3 => {
                for cpu in &state.cpus {
                    let (group, cpu) = (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, cpu << 32);
                    self.write(group, cpu | CTLR, 0)?;
                    for register in LPI_BASES.step_by(4) {
                        self.write(group, cpu | register, 0)?;
                    }
                    self.clear(group, cpu | SGI_FRAME, 0..SPI_BASE)?;
                }
                self.clear(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, shared.clone())?;
                for intid in shared {
                    let router = IROUTER.saturating_add(u64::from(intid) * 8);
                    self.write(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, router, 0)?;
                }
            }
        }
        for Saved { group, attr, value } in &state.words {
            self.write(*group, *attr, *value)?;
        }
        for Saved { group, attr, value } in &state.system {
            self.set(*group, *attr, value, "reset the CPU interfaces")?;
        }
        if let Some(its) = &self.its {
            let (group, attr) = (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_CTRL_RESET.into());
            set(its, group, attr, &0_u64).map_err(|e| Error::kvm("reset the ITS", e))?;
        }
        Ok(())
    }

    /// Has KVM take groups of a GICv2, which it ignores until it knows that what writes them can read what it
    /// is (`vgic_mmio_uaccess_write_v2_misc`).
    fn make_groups_writable(&self) {
        let written = self
            .read_distributor(IIDR)
            .and_then(|iidr| self.write(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, IIDR, iidr));
        if let Err(error) = written {
            log::warn!(
                "a reset leaves the groups of interrupts as the guest has set them: {error}"
            );
        }
    }

    /// How attributes name the CPU of a register: by number, or by affinity (arm-vgic.rst, arm-vgic-v3.rst).
    fn cpu(&self, vcpu: &Vcpu) -> u64 {
        match self.version {
            Version::V2 => vcpu.index(),
            Version::V3 => {
                let affinity = vcpu.affinity();
                affinity >> 32 << 24 | affinity & 0xff_ffff
            }
        }
    }

    /// The registers of words that are read before: groups, triggers, private enables, and the CPU interfaces of a GICv2.
    fn kept(&self, cpus: &[u64]) -> Vec<(u32, u64)> {
        let dist = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
        let all = SPI_BASE.saturating_add(self.spis);
        let mut kept = Vec::new();
        let mut keep = |group, base: u64, intids: Range<u32>| {
            let groups = registers(IGROUPR, 32, &intids);
            let triggers = registers(ICFGR, 16, &intids);
            kept.extend(groups.chain(triggers).map(|register| (group, base | register)));
        };
        keep(dist, 0, SPI_BASE..all);
        let (private, frame) = match self.version {
            Version::V2 => (dist, 0),
            Version::V3 => (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, SGI_FRAME),
        };
        for cpu in cpus.iter().map(|cpu| cpu << 32 | frame) {
            keep(private, cpu, 0..SPI_BASE);
        }
        kept.extend(cpus.iter().map(|cpu| (private, cpu << 32 | frame | ISENABLER)));
        if self.version == Version::V2 {
            for cpu in cpus {
                let of_cpu = CPU_REGISTERS.map(|register| cpu << 32 | register);
                kept.extend(of_cpu.map(|attr| (KVM_DEV_ARM_VGIC_GRP_CPU_REGS, attr)));
            }
        }
        kept
    }

    /// Disables interrupts, and makes them inactive, not pending, of the highest priority.
    fn clear(&self, group: u32, base: u64, intids: Range<u32>) -> Result<(), Error> {
        for first in [ICENABLER, ICACTIVER] {
            for register in registers(first, 32, &intids) {
                self.write(group, base | register, u32::MAX)?;
            }
        }
        // Of a GICv3 all that is pending is written at once, of a GICv2 what isn't is cleared (arm-vgic-v3.rst,
        // "GICD_ISPENDR").
        let (first, value) = match self.version {
            Version::V2 => (ICPENDR, u32::MAX),
            Version::V3 => (ISPENDR, 0),
        };
        for register in registers(first, 32, &intids) {
            self.write(group, base | register, value)?;
        }
        self.zero(group, base | IPRIORITYR, 4, intids)
    }

    /// Writes zero to the registers from `first` on that have so many interrupts each.
    fn zero(&self, group: u32, first: u64, each: u32, intids: Range<u32>) -> Result<(), Error> {
        registers(first, each, &intids).try_for_each(|register| self.write(group, register, 0))
    }

    fn write(&self, group: u32, attr: u64, value: u32) -> Result<(), Error> {
        self.set(group, attr, &value, "reset the registers")
    }

    /// A register; `None` if there is none.
    fn read<T: Default>(&self, group: u32, attr: u64) -> Option<T> {
        let mut value = T::default();
        let addr = (&raw mut value).addr() as u64;
        let mut attr = kvm_device_attr { group, attr, addr, flags: 0 };
        // SAFETY: KVM writes as many bytes as the registers of this group have, 4 or, of system registers, 8,
        // which is the size of what the callers read.
        unsafe { self.device.get_device_attr(&mut attr) }.ok()?;
        Some(value)
    }
}

/// The registers from `first` on that have so many interrupts each, for all of these.
fn registers(first: u64, each: u32, intids: &Range<u32>) -> impl Iterator<Item = u64> + use<> {
    let words = intids.start / each..intids.end.div_ceil(each);
    words.map(move |word| first + u64::from(word) * 4)
}
