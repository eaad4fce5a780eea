//! What a debugger has to do about exceptions of the guest: to keep interrupts out of a step, and to give
//! the guest the BRK instructions that are its own.

use std::io;

use super::{DebuggedCpu, Register, read64};

/// PSTATE.I and PSTATE.F: interrupts are masked (Arm ARM, C5.2.19 SPSR_EL1).
const INTERRUPTS: u64 = 1 << 7 | 1 << 6;
/// PSTATE.D and PSTATE.A, and EL1 with its own stack pointer.
const EL1H_MASKED: u64 = 1 << 9 | 1 << 8 | INTERRUPTS | EL1 | 1;
/// PSTATE.M: EL1, with a stack pointer by the lowest bit.
const EL1: u64 = 0b0100;
const EL: u64 = 0b1100;
/// PSTATE.M: AArch32.
const AARCH32: u64 = 1 << 4;
const SSBS: u64 = 1 << 12;
const PAN: u64 = 1 << 22;
/// What an exception leaves of PSTATE: N, Z, C, V, DIT and PAN.
const KEPT: u64 = 0xf << 28 | 1 << 24 | PAN;

/// SCTLR_EL1.SPAN: an exception leaves PSTATE.PAN as it is; and DSSBS, the PSTATE.SSBS of an exception.
const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;

/// The size of a vector, and of all of them.
const VECTOR: u64 = 0x80;
const VECTORS: u64 = 0x800;

/// A step during which the vCPU takes no interrupts. An interrupt that waits, as the timer's always does
/// after a stop, would be taken instead of the instruction: a step would end in the vectors, and go on from
/// a breakpoint never.
#[derive(Debug)]
pub struct MaskedStep {
    /// Where the instruction is.
    pc: u64,
    /// PSTATE.I and PSTATE.F as the guest has set them.
    interrupts: u64,
}

impl MaskedStep {
    /// Masks interrupts before the step of this instruction. `None` if it looks at the mask or changes it,
    /// so that it has to be carried out as it is.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn begin(cpu: &dyn DebuggedCpu, instruction: u32) -> io::Result<Option<Self>> {
        let pstate = read64(cpu, Register::Pstate)?;
        if uses_mask(instruction) || pstate & AARCH32 != 0 {
            return Ok(None);
        }
        let step = Self { pc: read64(cpu, Register::Pc)?, interrupts: pstate & INTERRUPTS };
        cpu.write(Register::Pstate, (pstate | INTERRUPTS).into())?;
        Ok(Some(step))
    }

    /// Restores the mask once the vCPU has stopped: where the instruction has taken an exception, in what
    /// that saved.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn end(self, cpu: &dyn DebuggedCpu) -> io::Result<()> {
        let pc = read64(cpu, Register::Pc)?;
        let vectors = read64(cpu, Register::VBAR_EL1)?;
        let is_vector = pc.wrapping_sub(vectors) < VECTORS && pc & (VECTOR - 1) == 0;
        let returns_to = read64(cpu, Register::ELR_EL1)?;
        let is_ours = [self.pc, self.pc.wrapping_add(4)].contains(&returns_to);
        let is_taken = is_vector && is_ours && pc != self.pc;
        let register = if is_taken { Register::SPSR_EL1 } else { Register::Pstate };
        let value = read64(cpu, register)? & !INTERRUPTS | self.interrupts;
        cpu.write(register, value.into())
    }
}

/// Whether an instruction reads or writes PSTATE's mask: MRS and MSR of DAIF, MSR with an immediate, ERET and
/// its kin (Arm ARM, C4.1.94 "Branches, Exception Generating and System instructions").
fn uses_mask(instruction: u32) -> bool {
    let is_immediate = instruction & 0xfff8_f01f == 0xd500_401f;
    let is_daif = instruction & 0xffdf_ffe0 == 0xd51b_4220;
    let is_return = instruction & 0xfffe_0000 == 0xd69e_0000;
    is_immediate || is_daif || is_return
}

/// Has the guest take the exception of a BRK that is its own, at which it has stopped with this syndrome (Arm
/// ARM, D1.3.1 "Exception entry").
///
/// # Errors
///
/// KVM refused.
pub fn inject_brk(cpu: &dyn DebuggedCpu, syndrome: u32) -> io::Result<()> {
    let (pc, pstate) = (read64(cpu, Register::Pc)?, read64(cpu, Register::Pstate)?);
    let sctlr = read64(cpu, Register::SCTLR_EL1)?;
    let vector = match (pstate & EL, pstate & AARCH32, pstate & 1) {
        (EL1, 0, 0) => 0,
        (EL1, 0, _) => 0x200,
        (_, 0, _) => 0x400,
        _ => 0x600,
    };
    let mut masked = pstate & KEPT | EL1H_MASKED;
    if sctlr & SCTLR_SPAN == 0 {
        masked |= PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        masked |= SSBS;
    }
    cpu.write(Register::ELR_EL1, pc.into())?;
    cpu.write(Register::SPSR_EL1, pstate.into())?;
    cpu.write(Register::ESR_EL1, syndrome.into())?;
    let vectors = read64(cpu, Register::VBAR_EL1)?;
    cpu.write(Register::Pc, vectors.wrapping_add(vector).into())?;
    cpu.write(Register::Pstate, masked.into())
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeCpu;
    use super::*;

    const EL1H: u64 = EL1 | 1;
    const NOP: u32 = 0xd503_201f;

    fn cpu() -> FakeCpu {
        let cpu = FakeCpu::default();
        for (register, value) in [
            (Register::Pc, 0xffff_8000_0010_0000_u64),
            (Register::Pstate, 1 << 31 | EL1H),
            (Register::VBAR_EL1, 0xffff_8000_0080_0000),
            (Register::SCTLR_EL1, SCTLR_SPAN),
        ] {
            cpu.write(register, value.into()).unwrap();
        }
        cpu
    }

    fn get(cpu: &FakeCpu, register: Register) -> u64 {
        read64(cpu, register).unwrap()
    }

    #[test]
    fn a_step_masks_interrupts_and_restores_the_mask() {
        let cpu = cpu();
        let step = MaskedStep::begin(&cpu, NOP).unwrap().unwrap();
        assert_eq!(get(&cpu, Register::Pstate), 1 << 31 | INTERRUPTS | EL1H);
        cpu.write(Register::Pc, 0xffff_8000_0010_0004).unwrap();
        step.end(&cpu).unwrap();
        assert_eq!(get(&cpu, Register::Pstate), 1 << 31 | EL1H);
    }

    #[test]
    fn an_exception_of_the_instruction_saves_the_guest_s_mask() {
        let cpu = cpu();
        let step = MaskedStep::begin(&cpu, NOP).unwrap().unwrap();
        // What the CPU does on a data abort.
        cpu.write(Register::ELR_EL1, 0xffff_8000_0010_0000).unwrap();
        cpu.write(Register::SPSR_EL1, get(&cpu, Register::Pstate).into()).unwrap();
        cpu.write(Register::Pstate, EL1H_MASKED.into()).unwrap();
        cpu.write(Register::Pc, 0xffff_8000_0080_0200).unwrap();
        step.end(&cpu).unwrap();
        assert_eq!(get(&cpu, Register::SPSR_EL1), 1 << 31 | EL1H);
        assert_eq!(get(&cpu, Register::Pstate), EL1H_MASKED);
    }

    #[test]
    fn what_uses_the_mask_is_stepped_as_it_is() {
        let cpu = cpu();
        let mrs = [0xd53b_4220, 0xd53b_423e, 0xd51b_4220];
        // MSR DAIFSet, DAIFClr; ERET, ERETAA.
        for instruction in [0xd503_42df, 0xd503_42ff, 0xd69f_03e0, 0xd69f_0bff].iter().chain(&mrs) {
            assert!(MaskedStep::begin(&cpu, *instruction).unwrap().is_none(), "{instruction:#x}");
        }
        // BL, RET, MRS of NZCV, SVC, WFI.
        for instruction in [0x9400_0001, 0xd65f_03c0, 0xd53b_4200, 0xd400_0001, 0xd503_207f] {
            assert!(MaskedStep::begin(&cpu, instruction).unwrap().is_some(), "{instruction:#x}");
        }
    }

    #[test]
    fn a_brk_of_the_guest_is_an_exception_of_the_guest() {
        for (mode, vector) in [(EL1H, 0x200), (EL1, 0), (0, 0x400), (AARCH32, 0x600)] {
            let cpu = cpu();
            cpu.write(Register::Pstate, (1 << 30 | mode).into()).unwrap();
            inject_brk(&cpu, 0xf200_0800).unwrap();
            assert_eq!(get(&cpu, Register::Pc), 0xffff_8000_0080_0000 + vector);
            assert_eq!(get(&cpu, Register::Pstate), 1 << 30 | EL1H_MASKED);
            assert_eq!(get(&cpu, Register::SPSR_EL1), 1 << 30 | mode);
            assert_eq!(get(&cpu, Register::ELR_EL1), 0xffff_8000_0010_0000);
            assert_eq!(get(&cpu, Register::ESR_EL1), 0xf200_0800);
        }
        let cpu = cpu();
        cpu.write(Register::SCTLR_EL1, SCTLR_DSSBS.into()).unwrap();
        inject_brk(&cpu, 0xf200_0000).unwrap();
        assert_eq!(get(&cpu, Register::Pstate) & (PAN | SSBS), PAN | SSBS);
    }
}
