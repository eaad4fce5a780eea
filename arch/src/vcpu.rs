//! A vCPU: creation, boot registers, running.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, KVM_REG_ARM_CORE,
    KVM_REG_ARM64, KVM_REG_ARM64_SVE, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, KVM_REG_SIZE_U512,
    kvm_device_attr, kvm_one_reg, kvm_regs, kvm_vcpu_events, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::cpu::PMU_PPI;
use crate::error::io_error;
use crate::exit::{self, Exit};
use crate::load_store::{LoadStore, Register};
use crate::translation::Translation;
use crate::{CpuFeatures, Error};

/// The registers with which the boot vCPU enters the kernel (Documentation/arch/arm64/booting.rst, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootRegisters {
    /// pc: the kernel's first instruction (GPA).
    pub entry: u64,
    /// x0: the device tree (GPA).
    pub dtb: u64,
}

/// A virtual CPU.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    index: u64,
    mpidr: u64,
    features: CpuFeatures,
    /// What it was initialised with.
    init: kvm_vcpu_init,
}

impl Vcpu {
    /// Creates vCPU `index`, powered off unless it is the first.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub(crate) fn new(vm: &VmFd, index: u64, features: CpuFeatures) -> Result<Self, Error> {
        let fd = vm.create_vcpu(index).map_err(|e| refused("create", index, e))?;
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init)
            .map_err(|e| Error::kvm("tell the host CPU's type (KVM_ARM_PREFERRED_TARGET)", e))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2 | feature_bits(features);
        if index > 0 {
            init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        fd.vcpu_init(&init).map_err(|e| refused("initialise", index, e))?;
        if features.sve {
            // With all vector lengths that the host has (api.rst, 4.119 KVM_ARM_VCPU_FINALIZE).
            fd.vcpu_finalize(&KVM_ARM_VCPU_SVE.cast_signed())
                .map_err(|e| refused("finalize the SVE of", index, e))?;
        }
        let mpidr =
            read_register(&fd, MPIDR_EL1).map_err(|e| refused("read MPIDR_EL1 of", index, e))?;
        Ok(Self { fd, index, mpidr, features, init })
    }

    /// Resets it, as after its creation: powered off unless it is the first. Its timers and its PMU are reset
    /// with it, and where the host needs that, stage 2 is unmapped, so that the caches hold nothing of what was
    /// written into RAM before this (api.rst, 4.82 KVM_ARM_VCPU_INIT; `kvm_arch_vcpu_ioctl_vcpu_init`). It
    /// must be [settled](Self::settle).
    ///
    /// # Errors
    ///
    /// KVM refused.
    #[cold]
    pub fn reset(&self) -> Result<(), Error> {
        self.fd.vcpu_init(&self.init).map_err(|e| refused("reset", self.index, e))
    }

    /// Has KVM complete what the last [`run`](Self::run) left to the next: a register that was read of a
    /// device (api.rst, 5 "immediate_exit").
    #[cold]
    pub fn settle(&mut self) {
        self.immediate_exit().set(1);
        // It is interrupted at once.
        // SAFETY: KVM_RUN (linux/kvm.h) takes no argument, and this vCPU is run by nobody else. Not by
        // `exit::run`, which is a part of the loop that runs guests.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), 0xae80, 0) };
    }

    /// Lets it run: takes back [requests](ImmediateExit::request) to leave its guest.
    pub fn begin(&mut self) {
        self.immediate_exit().set(0);
    }

    /// Its number, counted from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The affinity fields of its MPIDR_EL1, as `reg` of its device-tree node has them
    /// (Documentation/devicetree/bindings/arm/cpus.yaml).
    pub fn affinity(&self) -> u64 {
        self.mpidr & 0xff_00ff_ffff
    }

    /// Sets the registers that the boot protocol names. The rest is as KVM resets it: EL1h with
    /// interrupts masked, MMU off.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn set_boot_registers(&self, boot: BootRegisters) -> Result<(), Error> {
        for (action, id, value) in [
            ("set pc of", offset_of!(user_pt_regs, pc), boot.entry),
            ("set x0 of", offset_of!(user_pt_regs, regs), boot.dtb),
        ] {
            let id = core_register(offset_of!(kvm_regs, regs) + id);
            self.fd
                .set_one_reg(id, &value.to_le_bytes())
                .map_err(|e| refused(action, self.index, e))?;
        }
        Ok(())
    }

    /// The lengths that its SVE vectors can have, in bits; none without SVE.
    ///
    /// # Errors
    ///
    /// KVM refused.
    #[cold]
    pub fn vector_lengths(&self) -> Result<Vec<u32>, Error> {
        if !self.features.sve {
            return Ok(Vec::new());
        }
        let mut bytes = [0; 64];
        self.fd
            .get_one_reg(SVE_VLS, &mut bytes)
            .map_err(|e| refused("tell the vector lengths of", self.index, e))?;
        Ok(lengths(&bytes))
    }

    /// Gives the PMU its interrupt and starts it; after the GIC is initialised
    /// (Documentation/virt/kvm/devices/vcpu.rst, section 1).
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn init_pmu(&self) -> Result<(), Error> {
        let refused = |e| refused("start the PMU of", self.index, e);
        let intid: u32 = PMU_PPI + 16;
        let mut attr = kvm_device_attr {
            group: KVM_ARM_VCPU_PMU_V3_CTRL,
            attr: u64::from(KVM_ARM_VCPU_PMU_V3_IRQ),
            addr: (&raw const intid).addr() as u64,
            flags: 0,
        };
        self.fd.set_device_attr(&attr).map_err(refused)?;
        attr.attr = u64::from(KVM_ARM_VCPU_PMU_V3_INIT);
        attr.addr = 0;
        self.fd.set_device_attr(&attr).map_err(refused)
    }

    /// Runs guest code until something needs the VMM.
    ///
    /// # Errors
    ///
    /// KVM_RUN failed.
    #[inline]
    pub fn run(&mut self) -> io::Result<Exit<'_>> {
        exit::run(&mut self.fd)
    }

    /// The access that ended the last [`run`](Self::run) with [`Exit::Undecodable`]: its GPA, and what the
    /// instruction is, if it is one that strait can carry out. `read` reads guest memory.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn undecodable_access(
        &mut self,
        read: impl Fn(u64) -> Option<u64>,
    ) -> io::Result<Option<(u64, LoadStore)>> {
        // SAFETY: KVM has filled in this member for KVM_EXIT_ARM_NISV and KVM_EXIT_ARM_LDST64B
        // (api.rst, 5), and any bits are numbers.
        let gpa = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.arm_nisv.fault_ipa };
        let pc = self.core(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pc))?;
        let translation = Translation {
            sctlr: self.read(SCTLR_EL1)?,
            tcr: self.read(TCR_EL1)?,
            ttbr0: self.read(TTBR0_EL1)?,
            ttbr1: self.read(TTBR1_EL1)?,
        };
        // A word is in one half of 8 bytes that are aligned.
        let words = translation.gpa(pc, &read).and_then(|at| read(at & !7));
        let word = words.map(|words| if pc & 4 == 0 { words } else { words >> 32 });
        let word = word.and_then(|word| u32::try_from(word & u64::from(u32::MAX)).ok());
        let Some(access) = word.and_then(LoadStore::decode) else { return Ok(None) };
        // Else it begins somewhere else, in RAM say, and only its end is here.
        let begins = self.base(access.base)?.wrapping_add_signed(access.offset);
        Ok((begins & PAGE_OFFSET == gpa & PAGE_OFFSET).then_some((gpa, access)))
    }

    /// A general-purpose register; 0 for XZR.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn register(&self, register: Register) -> io::Result<u64> {
        if register == 31 { Ok(0) } else { self.core(general(register)) }
    }

    /// Sets a general-purpose register; XZR stays as it is.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn set_register(&self, register: Register, value: u64) -> io::Result<()> {
        if register == 31 { Ok(()) } else { self.set_core(general(register), value) }
    }

    /// Ends an [access](Self::undecodable_access) that was carried out: writes its base register back and
    /// goes to the next instruction.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn complete(&self, access: &LoadStore) -> io::Result<()> {
        if access.write_back != 0 {
            let base = self.base(access.base)?.wrapping_add_signed(access.write_back);
            let at = if access.base == 31 { self.stack_pointer()? } else { general(access.base) };
            self.set_core(at, base)?;
        }
        let pc = offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pc);
        self.set_core(pc, self.core(pc)?.wrapping_add(4))
    }

    /// A base register.
    fn base(&self, register: Register) -> io::Result<u64> {
        self.core(if register == 31 { self.stack_pointer()? } else { general(register) })
    }

    /// Where `struct kvm_regs` has the stack pointer in use (Arm ARM, C5.2.20 SPSel and D1.2.2).
    fn stack_pointer(&self) -> io::Result<usize> {
        const PSTATE_SP: u64 = 1 << 0;
        let pstate = self.core(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pstate))?;
        let is_el1_s = pstate & PSTATE_SP != 0;
        let el0_s = offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, sp);
        Ok(if is_el1_s { offset_of!(kvm_regs, sp_el1) } else { el0_s })
    }

    fn core(&self, offset: usize) -> io::Result<u64> {
        self.read(core_register(offset))
    }

    fn set_core(&self, offset: usize, value: u64) -> io::Result<()> {
        self.fd.set_one_reg(core_register(offset), &value.to_le_bytes()).map(drop).map_err(io_error)
    }

    fn read(&self, id: u64) -> io::Result<u64> {
        read_register(&self.fd, id).map_err(io_error)
    }

    /// Answers the access that ended the last [`run`](Self::run) with
    /// [`Exit::Undecodable`] by an external abort, as a bus does where nothing answers.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn abort_access(&self) -> io::Result<()> {
        let mut events = kvm_vcpu_events::default();
        events.exception.ext_dabt_pending = 1;
        self.fd.set_vcpu_events(&events).map_err(io_error)
    }

    /// KVM's `immediate_exit` of this vCPU (api.rst, 5 "The kvm_run structure"), by which another
    /// thread makes it leave guest code.
    pub fn immediate_exit(&mut self) -> ImmediateExit {
        ImmediateExit::of(&mut self.fd)
    }

    /// What it has of the host CPU's.
    pub(crate) fn features(&self) -> CpuFeatures {
        self.features
    }
}

/// `immediate_exit` of a vCPU's `struct kvm_run` (Documentation/virt/kvm/api.rst, section 5).
#[derive(Debug)]
pub struct ImmediateExit(NonNull<AtomicU8>);

// SAFETY: the byte is shared with the kernel and made to be written while the vCPU runs on another
// thread; it is only accessed atomically.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    /// That in this mapping of a vCPU.
    pub(crate) fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(&mut vcpu.get_kvm_run().immediate_exit).cast())
    }

    /// Makes the vCPU's next `KVM_RUN` return at once. One that is under way needs a signal to its
    /// thread afterwards.
    ///
    /// # Safety
    ///
    /// The vCPU must not have been dropped.
    pub unsafe fn request(&self) {
        self.set(1);
    }

    /// Sets it, while the vCPU is there.
    fn set(&self, value: u8) {
        // SAFETY: the vCPU, and so its kvm_run mapping, is alive, by the callers; a byte has no alignment.
        unsafe { self.0.as_ref() }.store(value, Ordering::SeqCst);
    }

    /// Takes the request back.
    ///
    /// # Safety
    ///
    /// The vCPU must not have been dropped.
    pub(crate) unsafe fn withdraw(&self) {
        self.set(0);
    }
}

impl AsRawFd for Vcpu {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The error of what KVM refused to do with vCPU `index`.
fn refused(action: &str, index: u64, error: kvm_ioctls::Error) -> Error {
    Error::kvm(format!("{action} vCPU {index}"), error)
}

/// The features as `KVM_ARM_VCPU_INIT` takes them (api.rst, 4.82).
fn feature_bits(features: CpuFeatures) -> u32 {
    let mut bits = 0;
    if features.sve {
        bits |= 1 << KVM_ARM_VCPU_SVE;
    }
    if features.pauth {
        bits |= 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
    }
    if features.pmu {
        bits |= 1 << KVM_ARM_VCPU_PMU_V3;
    }
    bits
}

/// MPIDR_EL1 is op0=3 op1=0 CRn=0 CRm=0 op2=5 (Arm ARM D19.2.102).
const MPIDR_EL1: u64 =
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | (3 << 14) | 5;

/// Which vector lengths there are: a bit for each multiple of 128 bits
/// (`KVM_REG_ARM64_SVE_VLS`, api.rst, 4.68).
const SVE_VLS: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U512 | KVM_REG_ARM64_SVE as u64 | 0xffff;

/// The vector lengths, in bits, of what that register holds.
fn lengths(bits: &[u8; 64]) -> Vec<u32> {
    let bytes = (0..).step_by(8).zip(bits);
    let lengths = bytes.flat_map(|(first, byte)| {
        (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| (first + bit + 1) * 128)
    });
    lengths.collect()
}

/// SCTLR_EL1 is op0=3 op1=0 CRn=1 CRm=0 op2=0 (Arm ARM, D24.2.175), and so on.
const SCTLR_EL1: u64 = el1_register(1, 0);
const TTBR0_EL1: u64 = el1_register(2, 0);
const TTBR1_EL1: u64 = el1_register(2, 1);
const TCR_EL1: u64 = el1_register(2, 2);

/// The register id of the system register op0=3 op1=0 CRm=0 and these.
const fn el1_register(crn: u64, op2: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | (3 << 14) | crn << 7 | op2
}

/// The bits of an address that all mappings leave as they are.
const PAGE_OFFSET: u64 = 0xfff;

/// Where `struct kvm_regs` has a register of X0 to X30.
fn general(register: Register) -> usize {
    let index = usize::try_from(register & 31).unwrap_or_default();
    offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, regs) + index * size_of::<u64>()
}

/// The program counter of the vCPU with this descriptor, which isn't running: of the instruction whose access
/// it has left the guest for, until it runs again (`kvm_handle_mmio_return`). `None` if KVM refuses.
pub fn program_counter(vcpu: RawFd) -> Option<u64> {
    const PC: u64 = core_register(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pc));
    let mut value = 0_u64;
    let register = kvm_one_reg { id: PC, addr: (&raw mut value).addr() as u64 };
    // SAFETY: KVM_GET_ONE_REG (linux/kvm.h) reads `register` and writes the 8 bytes that it points at; whatever
    // else the descriptor may be refuses it.
    let read = unsafe { libc::ioctl(vcpu, 0x4010_aeab, &raw const register) };
    (read == 0).then_some(value)
}

/// The register id of the 64-bit field at `offset` of `kvm_regs`
/// (Documentation/virt/kvm/api.rst, 4.68 "arm64 core registers").
const fn core_register(offset: usize) -> u64 {
    let index = offset / size_of::<u32>();
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | index as u64
}

fn read_register(fd: &VcpuFd, id: u64) -> Result<u64, kvm_ioctls::Error> {
    let mut bytes = [0; 8];
    fd.get_one_reg(id, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_bits_for_kvm() {
        let none = CpuFeatures::default();
        assert_eq!((feature_bits(CpuFeatures::ALL), feature_bits(none)), (0b111_1000, 0));
    }

    #[test]
    fn vector_lengths_are_multiples_of_128_bits() {
        let mut bits = [0; 64];
        (bits[0], bits[1]) = (0b1011, 0b1000_0000);
        assert_eq!(lengths(&bits), [128, 256, 512, 2048]);
        assert!(lengths(&[0; 64]).is_empty());
    }
}
