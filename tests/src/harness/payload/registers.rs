//! A guest that looks at registers, changes them and resets itself.

use super::{
    GICD, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, branch_if_equal, call, compare, distance, image,
    load, store,
};

/// Where strait's guests with a GICv3 have the SGI and PPI frame of a CPU's redistributor.
const SGI_FRAME: u32 = 0x080a_0000 + 0x1_0000;

/// Bytes of a redistributor's frames.
const REDISTRIBUTOR: u32 = 0x2_0000;

/// GICD_ISENABLER0 in the distributor of a GICv2, and GICR_ISENABLER0 in that frame; and so on.
const IGROUPR0: u32 = 0x080;
const ISENABLER0: u32 = 0x100;
const ICENABLER0: u32 = 0x180;

/// SGIs in a register of a bit an interrupt.
const SGIS: u32 = 0xffff;

/// A register of a word.
#[derive(Clone, Copy, Debug)]
struct Change {
    /// Guest physical address.
    at: u32,
    /// What it reads at first.
    first: u32,
    /// What is written to it.
    write: u32,
}

/// On a GICv2: resets the machine with SGIs disabled and in group 1, again and again, and powers off if they
/// aren't enabled and in group 0 at first.
pub fn change_a_gicv2_and_reset() -> Vec<u8> {
    change(&[
        Change { at: GICD + ISENABLER0, first: SGIS, write: 0 },
        Change { at: GICD + ICENABLER0, first: SGIS, write: SGIS },
        Change { at: GICD + IGROUPR0, first: 0, write: u32::MAX },
    ])
}

/// On a GICv3: resets the machine with the SGIs of so many CPUs disabled, again and again, and powers off if
/// they aren't enabled at first.
pub fn change_a_gicv3_and_reset(cpus: u32) -> Vec<u8> {
    let of_cpu = |cpu: u32| {
        let frame = SGI_FRAME + cpu * REDISTRIBUTOR;
        Change { at: frame + ICENABLER0, first: SGIS, write: SGIS }
    };
    change(&(0..cpus).map(of_cpu).collect::<Vec<_>>())
}

/// Changes these registers and resets the machine; powers off if one doesn't read what it is to read.
fn change(registers: &[Change]) -> Vec<u8> {
    let failure = call(PSCI_SYSTEM_OFF);
    let mut code = Vec::new();
    for register in registers {
        code.extend(load(2, register.at));
        code.push(LOAD_WORD);
        code.extend(load(4, register.first));
        code.extend([compare(3, 4), branch_if_equal(distance(failure.len()) + 1)]);
        code.extend(&failure);
        code.extend(store(register.at, register.write));
    }
    code.extend(call(PSCI_SYSTEM_RESET));
    image(&code)
}

/// `LDR W3, [X2]`.
const LOAD_WORD: u32 = 0xb940_0043;
