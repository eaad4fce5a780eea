//! A vCPU of KVM, by a descriptor of its own beside its thread's.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW, KVM_GUESTDBG_USE_SW_BP,
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SVE, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U32,
    KVM_REG_SIZE_U64, KVM_REG_SIZE_U128, KVM_REG_SIZE_U2048, kvm_guest_debug, kvm_regs,
    user_fpsimd_state, user_pt_regs,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use super::points::BREAKPOINT_CONTROL;
use super::{Control, DebuggedCpu, Register};
use crate::error::io_error;
use crate::vcpu::{ImmediateExit, Vcpu};

/// A vCPU as a debugger has it.
#[derive(Debug)]
pub struct DebuggedVcpu {
    fd: VcpuFd,
    /// In the mapping of `fd`.
    exit: ImmediateExit,
    has_sve: bool,
    /// How many the hardware has.
    breakpoints: usize,
    watchpoints: usize,
}

impl DebuggedVcpu {
    /// That of this vCPU.
    pub(crate) fn new(vm: &VmFd, vcpu: &Vcpu) -> io::Result<Self> {
        let limit = |cap| usize::try_from(vm.check_extension_int(cap)).unwrap_or_default();
        // SAFETY: the vCPU is borrowed, and has its descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) }.try_clone_to_owned()?;
        // SAFETY: the descriptor was just made, and is a vCPU's.
        let mut fd = unsafe { vm.create_vcpu_from_rawfd(fd.into_raw_fd()) }.map_err(io_error)?;
        Ok(Self {
            exit: ImmediateExit::of(&mut fd),
            fd,
            has_sve: vcpu.features().sve,
            breakpoints: limit(Cap::DebugHwBps),
            watchpoints: limit(Cap::DebugHwWps),
        })
    }

    /// Where KVM has a register, and its size in bytes there (Documentation/virt/kvm/api.rst, 4.68).
    fn place(&self, register: Register) -> io::Result<(u64, usize)> {
        let core = |offset, size: u64, bytes| {
            let index = offset / size_of::<u32>();
            (KVM_REG_ARM64 | size | u64::from(KVM_REG_ARM_CORE) | index as u64, bytes)
        };
        let general = |offset| core(offset_of!(kvm_regs, regs) + offset, KVM_REG_SIZE_U64, 8);
        let floating = |offset| core(offset_of!(kvm_regs, fp_regs) + offset, KVM_REG_SIZE_U32, 4);
        Ok(match register {
            Register::X(n) => general(offset_of!(user_pt_regs, regs) + usize::from(n) * 8),
            Register::Pc => general(offset_of!(user_pt_regs, pc)),
            Register::Pstate => general(offset_of!(user_pt_regs, pstate)),
            Register::SP_EL0 => general(offset_of!(user_pt_regs, sp)),
            Register::SP_EL1 => core(offset_of!(kvm_regs, sp_el1), KVM_REG_SIZE_U64, 8),
            Register::ELR_EL1 => core(offset_of!(kvm_regs, elr_el1), KVM_REG_SIZE_U64, 8),
            Register::SPSR_EL1 => core(offset_of!(kvm_regs, spsr), KVM_REG_SIZE_U64, 8),
            // Of EL0's and EL1's own, that which SPSel selects, and never EL0's at EL1.
            Register::Sp => match self.read(Register::Pstate)? & 1 {
                0 => self.place(Register::SP_EL0)?,
                _ => self.place(Register::SP_EL1)?,
            },
            Register::V(n) if self.has_sve => {
                let kind = u64::from(KVM_REG_ARM64_SVE) | u64::from(n) << 5;
                (KVM_REG_ARM64 | KVM_REG_SIZE_U2048 | kind, 256)
            }
            Register::V(n) => {
                let vector = offset_of!(user_fpsimd_state, vregs) + usize::from(n) * 16;
                core(offset_of!(kvm_regs, fp_regs) + vector, KVM_REG_SIZE_U128, 16)
            }
            Register::Fpsr => floating(offset_of!(user_fpsimd_state, fpsr)),
            Register::Fpcr => floating(offset_of!(user_fpsimd_state, fpcr)),
            Register::System(encoding) => {
                let kind = u64::from(KVM_REG_ARM64_SYSREG) | u64::from(encoding);
                (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | kind, 8)
            }
        })
    }

    /// What KVM has there: of an SVE register more than its V.
    fn bytes(&self, place: u64, size: usize) -> io::Result<[u8; 256]> {
        let mut bytes = [0; 256];
        self.fd.get_one_reg(place, bytes.get_mut(..size).unwrap_or_default()).map_err(io_error)?;
        Ok(bytes)
    }
}

impl DebuggedCpu for DebuggedVcpu {
    fn read(&self, register: Register) -> io::Result<u128> {
        let (place, size) = self.place(register)?;
        let bytes = self.bytes(place, size)?;
        Ok(bytes.first_chunk().copied().map(u128::from_le_bytes).unwrap_or_default())
    }

    fn write(&self, register: Register, value: u128) -> io::Result<()> {
        let (place, size) = self.place(register)?;
        let mut bytes = self.bytes(place, size)?;
        let low = size.min(16);
        if let (Some(to), Some(from)) = (bytes.get_mut(..low), value.to_le_bytes().get(..low)) {
            to.copy_from_slice(from);
        }
        let bytes = bytes.get(..size).unwrap_or_default();
        self.fd.set_one_reg(place, bytes).map(drop).map_err(io_error)
    }

    fn control(&self, control: &Control) -> io::Result<()> {
        if control.breakpoints.len() > self.breakpoints
            || control.watchpoints.len() > self.watchpoints
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut debug = kvm_guest_debug::default();
        let has_points = !control.breakpoints.is_empty() || !control.watchpoints.is_empty();
        for (is_set, flag) in [
            (control.single_step, KVM_GUESTDBG_SINGLESTEP),
            (control.brk, KVM_GUESTDBG_USE_SW_BP),
            (has_points, KVM_GUESTDBG_USE_HW),
        ] {
            if is_set {
                debug.control |= KVM_GUESTDBG_ENABLE | flag;
            }
        }
        let values = debug.arch.dbg_bvr.iter_mut().zip(&mut debug.arch.dbg_bcr);
        for ((value, settings), address) in values.zip(&control.breakpoints) {
            (*value, *settings) = (address & !3, BREAKPOINT_CONTROL);
        }
        let values = debug.arch.dbg_wvr.iter_mut().zip(&mut debug.arch.dbg_wcr);
        for ((value, settings), watchpoint) in values.zip(&control.watchpoints) {
            (*value, *settings) = watchpoint.registers().ok_or(io::ErrorKind::InvalidInput)?;
        }
        self.fd.set_guest_debug(&debug).map_err(io_error)
    }

    fn interrupt(&self) {
        // SAFETY: it is in the mapping of `fd`, which lives as long.
        unsafe { self.exit.request() };
    }

    fn proceed(&self) {
        // SAFETY: it is in the mapping of `fd`, which lives as long.
        unsafe { self.exit.withdraw() };
    }
}
