//! SMMUv3TestEngine, the PCI function of Arm's Base platform FVP that does DMA when told to: what it is kept
//! from.
//!
//! Its registers: TF-A-tests, realm/include/smmuv3_test_engine.h; how they are used,
//! realm/smmuv3_test_engine.c there. The function has pairs of frames of 128 bytes in its first region, user's
//! and privileged; the first pair is used.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::copier::{self, Copied, SIZE};
use crate::vfio::quiesce::QuiesceError;
use crate::vfio::region::{AccessError, RegisterAccess};
use crate::vfio::selftest::{Isolation, SelfTest, SelfTestError, StepError};

/// Its vendor and device.
pub(super) const IDENTITY: [u8; 4] = [0xb5, 0x13, 0x80, 0xff];

// Registers of a user's frame, in bytes.
/// What the frame does: nothing, copy; it reads as one of the last two when that went wrong.
const COMMAND: u64 = 0x00;
const HALTED: u32 = 1;
const COPY: u32 = 2;
const MISCONFIGURED: u32 = u32::MAX - 1;
const FAILED: u32 = u32::MAX;
const CONTROL: u64 = 0x04;
/// Where the message goes at the end: nowhere. An address, data and attributes.
const MESSAGE: [u64; 4] = [0x10, 0x14, 0x18, 0x1c];
/// Attributes of both sides of a copy, and those of write-back, inner shareable, non-secure memory.
const ATTRIBUTES: u64 = 0x20;
const NORMAL_MEMORY: u32 = 0x42ff_42ff;
/// In which order it copies; 0 is from the first byte to the last.
const SEED: u64 = 0x24;
/// Of 64 bits: the first byte, the last one, how far apart, where they go.
const BEGIN: u64 = 0x28;
const END: u64 = 0x30;
const STRIDE: u64 = 0x38;
const DESTINATION: u64 = 0x40;

/// A privileged frame: non-secure in its first word; the port, the stream and its substream, of which
/// there is none.
const PRIVILEGED: u64 = 0x1_0000;
const PRIVILEGED_VALUES: [u32; 4] = [1, 0, 0, u32::MAX];

/// How long a copy may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The verdict on its isolation.
///
/// # Errors
///
/// The host refuses something without which nothing can be tested.
#[cold]
pub(super) fn isolation(test: &mut SelfTest) -> Result<Isolation, SelfTestError> {
    let registers = test.regions().first().cloned().ok_or(QuiesceError::NoRegion(0))?;
    copier::isolation(test, &|from, to| copy(&*registers, from, to))
}

/// Copies, and waits for the end.
fn copy(engine: &dyn RegisterAccess, from: u64, to: u64) -> Result<Copied, StepError> {
    for (register, value) in (PRIVILEGED..).step_by(4).zip(PRIVILEGED_VALUES) {
        engine.write32(register, value)?;
    }
    engine.write32(COMMAND, HALTED)?;
    for register in MESSAGE.into_iter().chain([CONTROL, SEED]) {
        engine.write32(register, 0)?;
    }
    engine.write32(ATTRIBUTES, NORMAL_MEMORY)?;
    let last = from.saturating_add(SIZE as u64 - 1);
    for (register, value) in [(BEGIN, from), (END, last), (STRIDE, 1), (DESTINATION, to)] {
        write64(engine, register, value)?;
    }
    engine.write32(COMMAND, COPY)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match engine.read32(COMMAND)? {
            HALTED => return Ok(Copied::Done),
            FAILED => return Ok(Copied::Failed("it reports an error".to_owned())),
            MISCONFIGURED => return Err("it says that it is misconfigured".into()),
            // The command is there until it ends.
            command if Instant::now() >= deadline => {
                engine.write32(COMMAND, HALTED)?;
                return Err(format!("a copy doesn't end (command {command:#x})").into());
            }
            _ => sleep(Duration::from_millis(5)),
        }
    }
}

/// Writes both halves of a register, the lower one first.
fn write64(engine: &dyn RegisterAccess, register: u64, value: u64) -> Result<(), AccessError> {
    let [low, high] = [value & 0xffff_ffff, value >> 32];
    engine.write32(register, u32::try_from(low).unwrap_or_default())?;
    engine.write32(register.saturating_add(4), u32::try_from(high).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;

    /// The registers, and how a copy ends.
    struct Engine {
        registers: RefCell<BTreeMap<u64, u32>>,
        end: u32,
    }

    impl Engine {
        fn new(end: u32) -> Self {
            Self { registers: RefCell::new([(COMMAND, HALTED)].into()), end }
        }

        fn word(&self, register: u64) -> u32 {
            self.registers.borrow().get(&register).copied().unwrap_or(0xdead_beef)
        }
    }

    impl RegisterAccess for Engine {
        fn read32(&self, offset: u64) -> Result<u32, AccessError> {
            let value = self.word(offset);
            // The copy is over when somebody looks.
            if offset == COMMAND && value == COPY {
                self.registers.borrow_mut().insert(COMMAND, self.end);
            }
            Ok(value)
        }

        fn write32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
            // Registers are writable only while nothing is copied.
            assert!(offset == COMMAND || self.word(COMMAND) != COPY, "{offset:#x}");
            self.registers.borrow_mut().insert(offset, value);
            Ok(())
        }
    }

    #[test]
    fn a_copy_is_described_in_both_frames_and_ends() {
        let engine = Engine::new(HALTED);
        assert_eq!(
            copy(&engine, 0x1_8000_0000, 0x2_0000_0400).unwrap_or_else(|_| panic!()),
            Copied::Done
        );
        let both = |register| [engine.word(register), engine.word(register + 4)];
        assert_eq!(both(BEGIN), [0x8000_0000, 1]);
        assert_eq!(both(END), [0x8000_03ff, 1]);
        assert_eq!(both(STRIDE), [1, 0]);
        assert_eq!(both(DESTINATION), [0x400, 2]);
        assert_eq!([both(0x10), both(0x18)], [[0; 2]; 2]);
        assert_eq!([both(PRIVILEGED), both(PRIVILEGED + 8)], [[1, 0], [0, u32::MAX]]);
    }

    #[test]
    fn what_went_wrong_is_told() {
        let end = copy(&Engine::new(FAILED), 0, 0);
        assert!(matches!(end, Ok(Copied::Failed(told)) if told.contains("error")));
        let end = copy(&Engine::new(MISCONFIGURED), 0, 0);
        assert!(matches!(end, Err(StepError::Device(told)) if told.contains("misconfigured")));
    }
}
