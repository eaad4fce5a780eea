//! What of the workspace itself runs in the model: strait and the test agent, for 64-bit Arm.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{Error, FileError};
use super::process;
use super::progress::Step;
use super::toolchain::{TARGET, Toolchain};
use super::workspace;

/// How many lines of a failed build are shown: a compiler says more than others.
const MAX_SHOWN_LINES: usize = 300;
/// Packages and the binaries that are wanted of them: nothing of this tool, whose crates are built
/// for this machine.
const BUILD: [&str; 9] = [
    "--package",
    "vmm",
    "--package",
    "tests",
    "--no-default-features",
    "--bin",
    "strait",
    "--bin",
    "agent",
];

/// `e_machine` of 64-bit Arm ("ELF for the Arm 64-bit Architecture", section 5.1).
const EM_AARCH64: u16 = 183;
/// `p_type` of the segment that names a dynamic loader (ELF specification, "Program Header").
const PT_INTERP: u32 = 3;

/// The built binaries.
pub(super) struct Binaries {
    /// The VMM.
    pub(super) strait: PathBuf,
    /// The test agent.
    pub(super) agent: PathBuf,
}

/// Builds them, as far as they aren't up to date.
pub(super) fn build(toolchain: &Toolchain, step: &Step) -> Result<Binaries, Error> {
    toolchain.check_version()?;
    step.begin_log()?;
    let mut crates = 0_u32;
    let mut cargo = toolchain.release_build();
    process::run_showing(MAX_SHOWN_LINES, step, cargo.args(BUILD), |line| {
        if line.trim_start().starts_with("Compiling ") {
            if crates == 0 {
                step.phase("compiling");
            }
            crates = crates.saturating_add(1);
            step.count(format!("{crates} crates"));
        }
    })?;
    let dir = workspace::target_dir().join(TARGET).join("release");
    let binaries = Binaries { strait: dir.join("strait"), agent: dir.join("agent") };
    for path in [&binaries.strait, &binaries.agent] {
        let program = fs::read(path).at("read", path)?;
        if let Some(wrong) = fault(&program) {
            return Err(Error::Built { path: path.clone(), wrong: wrong.to_owned() });
        }
    }
    if crates > 0 {
        step.done("built");
    }
    Ok(binaries)
}

/// What keeps a program from running in the model's initramfs, if anything.
fn fault(program: &[u8]) -> Option<&'static str> {
    let truncated = Some("a truncated ELF file");
    if program.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Some("not a 64-bit little-endian ELF file");
    }
    // Offsets of the ELF64 header: e_machine 18, e_phoff 32, e_phentsize 54, e_phnum 56.
    let (Some(machine), Some(table), Some(size), Some(count)) =
        (half(program, 18), offset(program, 32), half(program, 54), half(program, 56))
    else {
        return truncated;
    };
    if machine != EM_AARCH64 {
        return Some("not for 64-bit Arm");
    }
    for index in 0..usize::from(count) {
        let start = index.checked_mul(usize::from(size)).and_then(|at| at.checked_add(table));
        match start.and_then(|start| program.get(start..)?.first_chunk::<4>()) {
            Some(kind) if u32::from_le_bytes(*kind) == PT_INTERP => {
                return Some("dynamically linked, and the model has no libraries");
            }
            Some(_) => {}
            None => return truncated,
        }
    }
    None
}

fn half(program: &[u8], at: usize) -> Option<u16> {
    program.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn offset(program: &[u8], at: usize) -> Option<usize> {
    let bytes = program.get(at..)?.first_chunk()?;
    usize::try_from(u64::from_le_bytes(*bytes)).ok()
}

/// Whether `path` is a program that runs in the model.
pub(super) fn runs_in_model(path: &Path) -> Result<Option<&'static str>, Error> {
    Ok(fault(&fs::read(path).at("read", path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one program header of this type.
    fn elf(machine: u16, segment: u32) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file.extend(segment.to_le_bytes());
        file.resize(64 + 56, 0);
        file
    }

    #[test]
    fn only_a_static_program_for_arm_passes() {
        let x86 = 62;
        let load = 1;
        let table = [
            (elf(EM_AARCH64, load), None),
            (
                elf(EM_AARCH64, PT_INTERP),
                Some("dynamically linked, and the model has no libraries"),
            ),
            (elf(x86, load), Some("not for 64-bit Arm")),
            (elf(EM_AARCH64, load)[..40].to_vec(), Some("a truncated ELF file")),
            (elf(EM_AARCH64, load)[..65].to_vec(), Some("a truncated ELF file")),
            (b"#!/bin/sh\n".to_vec(), Some("not a 64-bit little-endian ELF file")),
            (Vec::new(), Some("not a 64-bit little-endian ELF file")),
        ];
        for (program, expected) in table {
            assert_eq!(fault(&program), expected);
        }
    }

    #[test]
    fn a_program_header_table_beyond_all_addresses_is_truncation() {
        let mut file = elf(EM_AARCH64, 1);
        file[32..40].fill(0xff);
        assert_eq!(fault(&file), Some("a truncated ELF file"));
    }
}
