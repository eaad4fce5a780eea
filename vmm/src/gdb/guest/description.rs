//! The target description (GDB's manual, "Target Descriptions" and "AArch64 Features").

use std::fmt::Write;

use gdbstub::target::TargetResult;
use gdbstub::target::ext::target_description_xml_override::TargetDescriptionXmlOverride;

use super::{Guest, copy_part};

/// The types of PSTATE and of vectors.
const TYPES: [&str; 2] = [include_str!("cpsr.xml"), include_str!("vectors.xml")];

/// System registers that debuggers show, by op1, CRn, CRm and op2; op0 is 3 (Arm ARM, D24.2).
const SYSTEM: [(&str, [u16; 4]); 42] = [
    ("MIDR_EL1", [0, 0, 0, 0]),
    ("MPIDR_EL1", [0, 0, 0, 5]),
    ("ID_AA64PFR0_EL1", [0, 0, 4, 0]),
    ("ID_AA64PFR1_EL1", [0, 0, 4, 1]),
    ("ID_AA64ZFR0_EL1", [0, 0, 4, 4]),
    ("ID_AA64DFR0_EL1", [0, 0, 5, 0]),
    ("ID_AA64ISAR0_EL1", [0, 0, 6, 0]),
    ("ID_AA64ISAR1_EL1", [0, 0, 6, 1]),
    ("ID_AA64ISAR2_EL1", [0, 0, 6, 2]),
    ("ID_AA64MMFR0_EL1", [0, 0, 7, 0]),
    ("ID_AA64MMFR1_EL1", [0, 0, 7, 1]),
    ("ID_AA64MMFR2_EL1", [0, 0, 7, 2]),
    ("SCTLR_EL1", [0, 1, 0, 0]),
    ("ACTLR_EL1", [0, 1, 0, 1]),
    ("CPACR_EL1", [0, 1, 0, 2]),
    ("TTBR0_EL1", [0, 2, 0, 0]),
    ("TTBR1_EL1", [0, 2, 0, 1]),
    ("TCR_EL1", [0, 2, 0, 2]),
    ("APIAKEYLO_EL1", [0, 2, 1, 0]),
    ("APIAKEYHI_EL1", [0, 2, 1, 1]),
    ("SPSR_EL1", [0, 4, 0, 0]),
    ("ELR_EL1", [0, 4, 0, 1]),
    ("SP_EL0", [0, 4, 1, 0]),
    ("AFSR0_EL1", [0, 5, 1, 0]),
    ("AFSR1_EL1", [0, 5, 1, 1]),
    ("ESR_EL1", [0, 5, 2, 0]),
    ("FAR_EL1", [0, 6, 0, 0]),
    ("PAR_EL1", [0, 7, 4, 0]),
    ("MAIR_EL1", [0, 10, 2, 0]),
    ("AMAIR_EL1", [0, 10, 3, 0]),
    ("VBAR_EL1", [0, 12, 0, 0]),
    ("CONTEXTIDR_EL1", [0, 13, 0, 1]),
    ("TPIDR_EL1", [0, 13, 0, 4]),
    ("CNTKCTL_EL1", [0, 14, 1, 0]),
    ("CSSELR_EL1", [2, 0, 0, 0]),
    ("CTR_EL0", [3, 0, 0, 1]),
    ("PMCR_EL0", [3, 9, 12, 0]),
    ("PMUSERENR_EL0", [3, 9, 14, 0]),
    ("TPIDR_EL0", [3, 13, 0, 2]),
    ("TPIDRRO_EL0", [3, 13, 0, 3]),
    ("CNTV_CTL_EL0", [3, 14, 3, 1]),
    ("SP_EL1", [4, 4, 1, 0]),
];

/// The description of strait's guests.
pub(super) fn description() -> String {
    let mut text =
        String::from("<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">");
    let [cpsr, vectors] = TYPES;
    text += "<target version=\"1.0\"><architecture>aarch64</architecture>";
    text += "<feature name=\"org.gnu.gdb.aarch64.core\">";
    text += cpsr;
    let mut register = |name: &str, bits: u32, rest: &str| {
        // A string takes what is written.
        let _ = write!(text, "<reg name=\"{name}\" bitsize=\"{bits}\"{rest}/>");
    };
    (0..31).for_each(|n| register(&format!("x{n}"), 64, ""));
    register("sp", 64, " type=\"data_ptr\"");
    register("pc", 64, " type=\"code_ptr\"");
    register("cpsr", 32, " type=\"cpsr_flags\"");
    text += "</feature><feature name=\"org.gnu.gdb.aarch64.fpu\">";
    text += vectors;
    let mut register = |name: &str, bits: u32, rest: &str| {
        let _ = write!(text, "<reg name=\"{name}\" bitsize=\"{bits}\"{rest}/>");
    };
    (0..32).for_each(|n| register(&format!("v{n}"), 128, " type=\"aarch64v\""));
    register("fpsr", 32, "");
    register("fpcr", 32, "");
    text += "</feature><feature name=\"strait.aarch64.system\">";
    for (name, [op1, crn, crm, op2]) in SYSTEM {
        let number = 3 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
        let _ = write!(
            text,
            "<reg name=\"{name}\" bitsize=\"64\" regnum=\"{number}\" group=\"system\"/>"
        );
    }
    text + "</feature></target>"
}

impl TargetDescriptionXmlOverride for Guest {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(().into());
        }
        Ok(copy_part(self.description.as_bytes(), offset, length, buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_registers_are_numbered_by_their_encodings() {
        let text = description();
        assert!(
            text.contains(r#"<reg name="SCTLR_EL1" bitsize="64" regnum="49280" group="system"/>"#)
        );
        assert_eq!(text.matches("<reg ").count(), 68 + SYSTEM.len());
        assert_eq!(text.matches('<').count(), text.matches('>').count());
        // Ascending, as GDB lays out the others after them.
        let mut numbers = SYSTEM.map(|(_, code)| code);
        numbers.sort_unstable();
        assert_eq!(numbers, SYSTEM.map(|(_, code)| code));
    }
}
