//! Two vCPUs at odds: one reads a register all the time, the other has it taken away and given back.

use super::{PSCI_SYSTEM_OFF, branch, call, image, load, repeated, store};
use crate::harness::payload::accesses::address_of;

/// The function identifier of PSCI's `CPU_ON` (Arm DEN 0022).
const PSCI_CPU_ON: u32 = 0x8400_0003;

/// 32-bit stores, address and value, made one after another so many times.
#[derive(Clone, Debug)]
pub struct Toggle {
    /// How often.
    pub times: u32,
    /// Guest physical addresses and what is written there.
    pub stores: Vec<(u32, u32)>,
}

/// Makes these stores on vCPU 0 while vCPU 1 reads the word at `address` (GPA) for ever, then powers
/// off.
pub fn toggle_while_read(address: u32, toggles: &[Toggle]) -> Vec<u8> {
    let mut body = Vec::new();
    for Toggle { times, stores } in toggles {
        let stores: Vec<u32> = stores.iter().flat_map(|(at, value)| store(*at, *value)).collect();
        body.extend(repeated(*times, &stores));
    }
    body.extend(call(PSCI_SYSTEM_OFF));
    let reader = [&load(2, address)[..], &[LOAD_WORD, branch(-1)]].concat();

    // CPU_ON of MPIDR 1 at the reader, which is last.
    let mut start = Vec::from(load(1, 1));
    let call_on = [&load(3, 0)[..], &call(PSCI_CPU_ON)].concat();
    start.push(address_of(2, 4 * (1 + call_on.len() + body.len())));
    start.extend(call_on);
    image(&[start, body, reader].concat())
}

/// `LDR W0, [X2]`.
const LOAD_WORD: u32 = 0xb940_0040;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_cpu_begins_at_the_reader() {
        let toggle = Toggle { times: 3, stores: vec![(0x1000, 2), (0x1004, 0)] };
        let bytes = toggle_while_read(0x2000_0010, &[toggle]);
        let words: Vec<u32> = bytes[64..]
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        // mov x2, #0x10; movk x2, #0x2000, lsl #16; ldr w0, [x2]; b .-4
        let reader = [0xd280_0202, 0xf2a4_0002, 0xb940_0040, 0x17ff_ffff];
        assert_eq!(words[words.len() - 4..], reader);
        let distance = u32::try_from(words.len() - 4 - 2).unwrap();
        assert_eq!(words[2], 0x1000_0002 | distance << 5, "adr x2, reader");
    }
}
