//! Accesses and calls, one after another, with what each must give.

use super::{
    PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, branch_if_equal, branch_if_not_zero, call, compare,
    distance, image, load, store, subtract_one,
};

/// Where strait's guests have their serial port.
const SERIAL: u32 = 0x0900_0000;

/// How often a word is read that isn't yet what it must be.
const TRIES: u32 = 20_000;

/// A step; addresses are guest physical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Stores a word.
    Store {
        /// Where.
        at: u32,
        /// The word.
        value: u32,
    },
    /// The word there becomes this.
    Expect {
        /// Where.
        at: u32,
        /// The word.
        value: u32,
    },
    /// The four low bits of the word there become this.
    ExpectLow {
        /// Where.
        at: u32,
        /// The bits.
        value: u32,
    },
    /// A hypercall of this function answers this in W0.
    Call {
        /// Its identifier.
        function: u32,
        /// The low half of X0.
        answer: u32,
    },
}

/// Takes the steps and powers off. At the first that doesn't give what it must it writes its number in
/// four octal digits to the serial port, and resets the machine.
pub fn script(steps: &[Step]) -> Vec<u8> {
    let mut code = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let failure = failure(number);
        match *step {
            Step::Store { at, value } => code.extend(store(at, value)),
            Step::Expect { at, value } => code.extend(expect(at, value, &[], &failure)),
            Step::ExpectLow { at, value } => {
                code.extend(expect(at, value, &[KEEP_LOW], &failure));
            }
            Step::Call { function, answer } => {
                code.extend(call(function));
                code.extend(load(4, answer));
                code.extend([compare(0, 4), branch_if_equal(distance(failure.len()) + 1)]);
                code.extend(failure);
            }
        }
    }
    code.extend(call(PSCI_SYSTEM_OFF));
    image(&code)
}

/// Reads a word, passes it through `filter`, and does this again until it is `value`, or `failure`.
fn expect(at: u32, value: u32, filter: &[u32], failure: &[u32]) -> Vec<u32> {
    let mut code = [load(3, TRIES), load(2, at), load(4, value)].concat();
    code.push(LOAD_WORD);
    code.extend(filter);
    code.extend([compare(0, 4), branch_if_equal(distance(failure.len()) + 3)]);
    code.extend([subtract_one(3), branch_if_not_zero(3, -distance(filter.len() + 4))]);
    code.extend(failure);
    code
}

/// Says the number of a step and resets the machine.
fn failure(number: usize) -> Vec<u32> {
    let number = u32::try_from(number).unwrap_or_default();
    let digits = [9, 6, 3, 0].map(|shift| u32::from(b'0') + (number >> shift & 7));
    let mut code: Vec<u32> = digits.into_iter().flat_map(|digit| store(SERIAL, digit)).collect();
    code.extend(store(SERIAL, u32::from(b'\n')));
    code.extend(call(PSCI_SYSTEM_RESET));
    code
}

/// `LDR W0, [X2]`.
const LOAD_WORD: u32 = 0xb940_0040;

/// `AND W0, W0, #0xf`.
const KEEP_LOW: u32 = 0x1200_0c00;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_behind_what_is_taken_when_all_is_well() {
        let code = expect(0x1000, 2, &[KEEP_LOW], &[1, 2, 3]);
        // ldr w0, [x2]; and w0, w0, #15; cmp w0, w4; b.eq .+24; sub x3, x3, #1; cbnz x3, .-20
        let expected =
            [0xb940_0040, 0x1200_0c00, 0x6b04_001f, 0x5400_00c0, 0xd100_0463, 0xb5ff_ff63, 1, 2, 3];
        assert_eq!(code[6..], expected);
    }
}
