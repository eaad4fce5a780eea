//! What a program may use of the CPU: the Scalable Vector Extension and pointer authentication.
//!
//! The kernel says which there are (`AT_HWCAP`, Documentation/arch/arm64/elf_hwcaps.rst); an
//! instruction of one that isn't there ends the program by SIGILL.

use crate::CommandError;

/// `HWCAP_SVE`, `HWCAP_PACA` and `HWCAP_PACG`.
const SVE: u64 = 1 << 22;
const PACA: u64 = 1 << 30;
const PACG: u64 = 1 << 31;

/// Says what there is, after using it: `sve BITS` and `pauth`, each in a line.
pub(crate) fn run() -> Result<(), CommandError> {
    // SAFETY: takes a number.
    let features = unsafe { libc::getauxval(libc::AT_HWCAP) };
    if features & SVE != 0 {
        println!("sve {}", add_vectors()?);
    }
    if features & (PACA | PACG) == PACA | PACG {
        authenticate()?;
        println!("pauth");
    }
    Ok(())
}

/// Adds up numbers by vectors of whatever length there is; the length in bits.
#[cfg(target_arch = "aarch64")]
fn add_vectors() -> Result<u64, CommandError> {
    const COUNT: u64 = 1000;
    let numbers: Vec<u64> = (1..=COUNT).collect();
    let (sum, bytes): (u64, u64);
    // SAFETY: reads the numbers, those lanes only that the predicate has; the vector registers and
    // predicates that it changes are named.
    unsafe {
        std::arch::asm!(
            ".arch_extension sve",
            "rdvl {bytes}, #1",
            "mov {index}, #0",
            "mov z0.d, #0",
            "whilelo p0.d, {index}, {count}",
            "1:",
            "ld1d {{z1.d}}, p0/z, [{from}, {index}, lsl #3]",
            "add z0.d, p0/m, z0.d, z1.d",
            "incd {index}",
            "whilelo p0.d, {index}, {count}",
            "b.first 1b",
            "ptrue p0.d",
            "uaddv d0, p0, z0.d",
            "fmov {sum}, d0",
            bytes = out(reg) bytes,
            index = out(reg) _,
            count = in(reg) COUNT,
            from = in(reg) numbers.as_ptr(),
            sum = out(reg) sum,
            out("v0") _,
            out("v1") _,
            out("p0") _,
            options(nostack, readonly),
        );
    }
    let expected = numbers.iter().sum::<u64>();
    if sum != expected {
        return Err(format!("vectors add up to {sum}, not to {expected}").into());
    }
    Ok(bytes * 8)
}

/// Signs a pointer and has the signature checked, then another's, which must not pass.
#[cfg(target_arch = "aarch64")]
fn authenticate() -> Result<(), CommandError> {
    let value = std::ptr::from_ref(&SVE).addr() as u64;
    let (signed, checked, generic): (u64, u64, u64);
    // SAFETY: no memory is touched; a signature that fits makes no fault.
    unsafe {
        std::arch::asm!(
            ".arch_extension pauth",
            "mov {signed}, {value}",
            "pacda {signed}, {modifier}",
            "mov {checked}, {signed}",
            "autda {checked}, {modifier}",
            "pacga {generic}, {value}, {modifier}",
            value = in(reg) value,
            modifier = in(reg) 42_u64,
            signed = out(reg) signed,
            checked = out(reg) checked,
            generic = out(reg) generic,
            options(nomem, nostack),
        );
    }
    if checked != value {
        return Err(format!("{value:#x} is signed {signed:#x} and checks as {checked:#x}").into());
    }
    // A signature can be 0 by chance, but not both of them.
    if signed == value && generic == 0 {
        return Err(format!("{value:#x} has no signature").into());
    }
    Ok(())
}

#[cfg(not(target_arch = "aarch64"))]
fn add_vectors() -> Result<u64, CommandError> {
    Err("only on 64-bit Arm".into())
}

#[cfg(not(target_arch = "aarch64"))]
fn authenticate() -> Result<(), CommandError> {
    Err("only on 64-bit Arm".into())
}
