//! Stopping the controller: nothing is sent or received, no interrupt is enabled or high.

use std::time::Duration;

use super::NAME;
use super::registers::{
    DESIGN_CONFIG6, ENABLE_RECEIVE, INT_DISABLE, INT_DISABLE_Q1, INT_STATUS, INT_STATUS_Q1,
    NETWORK_CONTROL, RECEIVE_STATUS, REVISION, TRANSMIT_GO, TRANSMIT_HALT, TRANSMIT_STATUS, WOL,
    is_gem, of_queues,
};
use crate::vfio::quiesce::{QuiesceError, poll_timeout};
use crate::vfio::region::{AccessError, RegisterAccess};

/// Stops the controller; waits at most `timeout` for the frame that is being sent, and as long until
/// nothing is.
pub(super) fn stop(registers: &dyn RegisterAccess, timeout: Duration) -> Result<(), QuiesceError> {
    let revision = registers.read32(REVISION)?;
    if !is_gem(revision) {
        return Err(QuiesceError::WrongDevice { expected: NAME, found: revision });
    }
    let queues = registers.read32(DESIGN_CONFIG6)?;
    registers.write32(INT_DISABLE, u32::MAX)?;
    of_queues(INT_DISABLE_Q1, queues).try_for_each(|at| registers.write32(at, u32::MAX))?;

    let control = registers.read32(NETWORK_CONTROL)?;
    registers.write32(NETWORK_CONTROL, control & !ENABLE_RECEIVE | TRANSMIT_HALT)?;
    wait_until_idle(registers, timeout)?;
    // With all else: the port to the PHY, loopback.
    registers.write32(NETWORK_CONTROL, 0)?;
    registers.write32(WOL, 0)?;
    let idle = wait_until_idle(registers, timeout)?;

    registers.write32(TRANSMIT_STATUS, u32::MAX)?;
    registers.write32(RECEIVE_STATUS, u32::MAX)?;
    let mut pending = clear(registers, INT_STATUS)?;
    for at in of_queues(INT_STATUS_Q1, queues) {
        pending |= clear(registers, at)?;
    }
    if pending != 0 {
        return Err(QuiesceError::StillActive(format!("interrupts {pending:#x} are still high")));
    }
    if !idle {
        return Err(QuiesceError::StillActive("it is still sending".to_owned()));
    }
    Ok(())
}

/// Waits until nothing is being sent; whether it came to that.
fn wait_until_idle(registers: &dyn RegisterAccess, timeout: Duration) -> Result<bool, AccessError> {
    let idle = || Ok((registers.read32(TRANSMIT_STATUS)? & TRANSMIT_GO == 0).then_some(()));
    Ok(poll_timeout(timeout, idle)?.is_some())
}

/// Clears an interrupt status, in the one way and in the other; what is high nevertheless.
fn clear(registers: &dyn RegisterAccess, status: u64) -> Result<u32, AccessError> {
    let high = registers.read32(status)?;
    registers.write32(status, high)?;
    registers.read32(status)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::super::registers::{ENABLE_TRANSMIT, LOOPBACK_LOCAL};
    use super::*;

    /// A controller as its manual describes it, which takes some polls to end a frame.
    #[derive(Default)]
    struct Gem {
        registers: RefCell<BTreeMap<u64, u32>>,
        /// How often it is asked for its status until the frame has ended.
        frame: RefCell<u32>,
        /// Interrupt statuses are cleared by writing 1, not by reading.
        write_to_clear: bool,
        /// Interrupts that nothing clears.
        stuck: u32,
        writes: RefCell<Vec<(u64, u32)>>,
    }

    impl Gem {
        fn new(registers: &[(u64, u32)]) -> Self {
            let registers = [(REVISION, 0x0007_0106)].iter().chain(registers).copied().collect();
            Self { registers: RefCell::new(registers), ..Self::default() }
        }

        fn get(&self, offset: u64) -> u32 {
            self.registers.borrow().get(&offset).copied().unwrap_or_default()
        }

        fn set(&self, offset: u64, value: u32) {
            self.registers.borrow_mut().insert(offset, value);
        }
    }

    impl RegisterAccess for Gem {
        fn read32(&self, offset: u64) -> Result<u32, AccessError> {
            let value = self.get(offset);
            Ok(match offset {
                TRANSMIT_STATUS => {
                    let mut frame = self.frame.borrow_mut();
                    let control = self.get(NETWORK_CONTROL);
                    if control & TRANSMIT_HALT != 0 || control & ENABLE_TRANSMIT == 0 {
                        *frame = frame.saturating_sub(1);
                    }
                    if *frame > 0 { value | TRANSMIT_GO } else { value }
                }
                INT_STATUS | 0x400..0x420 => {
                    if !self.write_to_clear {
                        self.set(offset, 0);
                    }
                    value | self.stuck
                }
                _ => value,
            })
        }

        fn write32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
            self.writes.borrow_mut().push((offset, value));
            match offset {
                TRANSMIT_STATUS | RECEIVE_STATUS => self.set(offset, self.get(offset) & !value),
                INT_STATUS | 0x400..0x420 if self.write_to_clear => {
                    self.set(offset, self.get(offset) & !value);
                }
                INT_STATUS | 0x400..0x420 => {}
                _ => self.set(offset, value),
            }
            Ok(())
        }
    }

    const SHORT: Duration = Duration::from_millis(5);
    const RUNNING: u32 = ENABLE_RECEIVE | ENABLE_TRANSMIT | 1 << 4 | LOOPBACK_LOCAL;

    #[test]
    fn a_running_controller_ends_its_frame_and_is_off_with_all_queues() {
        for write_to_clear in [false, true] {
            let gem = Gem {
                frame: RefCell::new(9),
                write_to_clear,
                ..Gem::new(&[
                    (NETWORK_CONTROL, RUNNING),
                    (DESIGN_CONFIG6, 0x0080_0006),
                    (INT_STATUS, 0x82),
                    (0x400, 2),
                    (0x404, 0x80),
                    (WOL, 0x1_0000),
                    (TRANSMIT_STATUS, 0x21),
                    (RECEIVE_STATUS, 2),
                ])
            };
            stop(&gem, Duration::from_secs(60)).unwrap();
            assert_eq!(*gem.frame.borrow(), 0);
            let cleared =
                [NETWORK_CONTROL, WOL, INT_STATUS, 0x400, 0x404, TRANSMIT_STATUS, RECEIVE_STATUS];
            for register in cleared {
                assert_eq!(gem.get(register), 0, "{register:#x}");
            }
            for register in [INT_DISABLE, 0x620, 0x624] {
                assert_eq!(gem.get(register), u32::MAX, "{register:#x}");
            }
            let writes = gem.writes.borrow();
            let halt = (NETWORK_CONTROL, RUNNING & !ENABLE_RECEIVE | TRANSMIT_HALT);
            let halted = writes.iter().position(|write| *write == halt);
            let off = writes.iter().position(|write| *write == (NETWORK_CONTROL, 0));
            let disabled = writes.iter().position(|write| *write == (0x624, u32::MAX));
            assert!(disabled < halted && halted < off && disabled.is_some(), "{writes:x?}");
        }
    }

    #[test]
    fn a_controller_that_does_not_stop_is_an_error() {
        let gem = Gem { frame: RefCell::new(u32::MAX), ..Gem::new(&[(NETWORK_CONTROL, RUNNING)]) };
        assert_eq!(stop(&gem, SHORT).unwrap_err().to_string(), "it is still sending");
        assert_eq!(gem.get(NETWORK_CONTROL), 0, "but it is off");
        let gem = Gem { stuck: 4, ..Gem::new(&[]) };
        let error = stop(&gem, SHORT).unwrap_err();
        assert_eq!(error.to_string(), "interrupts 0x4 are still high");
    }

    #[test]
    fn another_device_is_left_alone() {
        for revision in [0, 0x0001_010c, u32::MAX] {
            let gem = Gem::new(&[(REVISION, revision)]);
            let error = stop(&gem, SHORT).unwrap_err();
            assert!(matches!(error, QuiesceError::WrongDevice { expected: NAME, .. }), "{error}");
            assert!(gem.writes.borrow().is_empty());
        }
    }
}
