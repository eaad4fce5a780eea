//! A vCPU as a debugger has it: its registers, where it stops, and why it did.

mod exceptions;
mod points;
#[cfg(target_arch = "aarch64")]
mod vcpu;

use std::io;

use vm_memory::VolatileSlice;

pub use self::exceptions::{MaskedStep, inject_brk};
pub use self::points::{Access, Watchpoint};
#[cfg(target_arch = "aarch64")]
pub use self::vcpu::DebuggedVcpu;

/// A register, of 64 bits unless it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// X0 to X30.
    X(u8),
    /// The stack pointer in use.
    Sp,
    /// The program counter.
    Pc,
    /// PSTATE as SPSR_ELx has it, 32 bits.
    Pstate,
    /// V0 to V31, 128 bits.
    V(u8),
    /// FPSR, 32 bits.
    Fpsr,
    /// FPCR, 32 bits.
    Fpcr,
    /// A system register by its encoding in MRS: op0, op1, CRn, CRm, op2 (Arm ARM, C6.2.247 MRS), 16 bits.
    System(u16),
}

impl Register {
    /// SPSR_EL1.
    pub const SPSR_EL1: Self = Self::el1(0b000, 4, 0, 0);
    /// ELR_EL1.
    pub const ELR_EL1: Self = Self::el1(0b000, 4, 0, 1);
    /// SP_EL0.
    pub const SP_EL0: Self = Self::el1(0b000, 4, 1, 0);
    /// SP_EL1.
    pub const SP_EL1: Self = Self::el1(0b100, 4, 1, 0);
    /// SCTLR_EL1.
    pub const SCTLR_EL1: Self = Self::el1(0b000, 1, 0, 0);
    /// TTBR0_EL1.
    pub const TTBR0_EL1: Self = Self::el1(0b000, 2, 0, 0);
    /// TTBR1_EL1.
    pub const TTBR1_EL1: Self = Self::el1(0b000, 2, 0, 1);
    /// TCR_EL1.
    pub const TCR_EL1: Self = Self::el1(0b000, 2, 0, 2);
    /// ESR_EL1.
    pub const ESR_EL1: Self = Self::el1(0b000, 5, 2, 0);
    /// VBAR_EL1.
    pub const VBAR_EL1: Self = Self::el1(0b000, 12, 0, 0);

    /// The system register with op0=3 and these.
    const fn el1(op1: u16, crn: u16, crm: u16, op2: u16) -> Self {
        Self::System(3 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)
    }
}

/// Why a vCPU stopped for its debugger (Documentation/virt/kvm/api.rst, section 5 "KVM_EXIT_DEBUG"; Arm ARM,
/// D24.2.40 ESR_ELx).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It has carried out one instruction.
    Step,
    /// A BRK instruction, which it hasn't carried out; with the syndrome of its exception.
    Brk {
        /// As ESR_EL1 would have it.
        syndrome: u32,
    },
    /// It is about to carry out an instruction with a hardware breakpoint.
    Breakpoint,
    /// It is about to access this virtual address, near which a watchpoint is.
    Watchpoint(u64),
    /// Something else that debuggers do.
    Other,
}

impl Stop {
    /// Reads what KVM says: a syndrome and, of a watchpoint, the address (`struct kvm_debug_exit_arch`).
    pub fn new(syndrome: u32, address: u64) -> Self {
        match syndrome >> 26 {
            0x30 => Self::Breakpoint,
            0x32 => Self::Step,
            0x34 => Self::Watchpoint(address),
            0x3c => Self::Brk { syndrome },
            _ => Self::Other,
        }
    }
}

/// Where a vCPU stops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// After one instruction.
    pub single_step: bool,
    /// At BRK instructions.
    pub brk: bool,
    /// At these virtual addresses, by hardware.
    pub breakpoints: Vec<u64>,
    /// At accesses to these.
    pub watchpoints: Vec<Watchpoint>,
}

/// A vCPU that a debugger may have stopped. All but [`interrupt`](Self::interrupt) and
/// [`proceed`](Self::proceed) wait until it runs no guest code.
pub trait DebuggedCpu: Send {
    /// The value of a register.
    ///
    /// # Errors
    ///
    /// It has no such register.
    fn read(&self, register: Register) -> io::Result<u128>;

    /// Sets a register.
    ///
    /// # Errors
    ///
    /// It has no such register, or that can't have this value.
    fn write(&self, register: Register, value: u128) -> io::Result<()>;

    /// Sets where it stops, from its next instruction on.
    ///
    /// # Errors
    ///
    /// It has fewer hardware breakpoints or watchpoints, or can't have such.
    fn control(&self, control: &Control) -> io::Result<()>;

    /// Has it leave guest code at once, whenever it enters it. If it is there, its thread needs a signal
    /// afterwards.
    fn interrupt(&self);

    /// Ends that.
    fn proceed(&self);
}

/// The value of a register of up to 64 bits.
///
/// # Errors
///
/// As [`DebuggedCpu::read`].
pub fn read64(cpu: &dyn DebuggedCpu, register: Register) -> io::Result<u64> {
    let value = cpu.read(register)? & u128::from(u64::MAX);
    Ok(u64::try_from(value).unwrap_or_default())
}

/// Makes what was written to RAM at this place of this process what all vCPUs fetch and read there, with
/// caches on or off (Arm ARM, B2.7.4 "Implication of caches for the application programmer").
pub fn synchronize(written: &VolatileSlice<'_>) {
    /// The smallest cache line, in bytes (Arm ARM, D24.2.33 CTR_EL0: words as a power of two).
    #[cfg(target_arch = "aarch64")]
    const LINE: usize = 16;
    #[cfg(target_arch = "aarch64")]
    {
        let begin = written.ptr_guard().as_ptr().addr();
        let end = begin.saturating_add(written.len());
        let lines = || (begin & !(LINE - 1)..end).step_by(LINE);
        for line in lines() {
            // SAFETY: cleans a line of memory that can be read, which changes nothing of it.
            unsafe { std::arch::asm!("dc civac, {}", in(reg) line, options(nostack)) };
        }
        // SAFETY: a barrier.
        unsafe { std::arch::asm!("dsb ish", options(nostack)) };
        for line in lines() {
            // SAFETY: forgets instructions, which are fetched again.
            unsafe { std::arch::asm!("ic ivau, {}", in(reg) line, options(nostack)) };
        }
        // SAFETY: barriers.
        unsafe { std::arch::asm!("dsb ish", "isb", options(nostack)) };
    }
    #[cfg(not(target_arch = "aarch64"))]
    let _ = written;
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_s_syndromes_tell_why_a_vcpu_stopped() {
        for (syndrome, stop) in [
            (0xc000_0022, Stop::Breakpoint),
            (0xc800_0022, Stop::Step),
            (0xd000_0062, Stop::Watchpoint(0xffff_8000_0000_1234)),
            (0xf200_0800, Stop::Brk { syndrome: 0xf200_0800 }),
            (0, Stop::Other),
            (0xffff_ffff, Stop::Other),
        ] {
            assert_eq!(Stop::new(syndrome, 0xffff_8000_0000_1234), stop);
        }
        // MRS X0, SCTLR_EL1 is 0xd5381000: bits 5 to 20, with op0's upper bit.
        assert_eq!(Register::SCTLR_EL1, Register::System((0xd538_1000_u32 >> 5 & 0xffff) as u16));
    }
}
