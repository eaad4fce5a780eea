//! Stopping the controller: what is being written gets to the card, then everything is reset.

use std::time::Duration;

use super::NAME;
use super::registers::{
    CAPABILITIES, CLOCK, INHIBIT, INT_SIGNAL_ENABLE, INT_STATUS, PRESENT_STATE, RESET, RESET_ALL,
    VERSION, specification,
};
use crate::vfio::quiesce::{QuiesceError, poll_timeout};
use crate::vfio::region::{AccessError, RegisterAccess};

/// How long a reset may take, as Linux has it (drivers/mmc/host/sdhci.c).
const RESET_TIMEOUT: Duration = Duration::from_millis(100);

/// Stops the controller; waits at most `timeout` for a transfer that is under way. One that takes longer
/// is cut off.
pub(super) fn stop(registers: &dyn RegisterAccess, timeout: Duration) -> Result<(), QuiesceError> {
    let (version, capabilities) = (registers.read32(VERSION)?, registers.read32(CAPABILITIES)?);
    if specification(version).is_none() || matches!(capabilities, 0 | u32::MAX) {
        return Err(QuiesceError::WrongDevice { expected: NAME, found: version });
    }
    registers.write32(INT_SIGNAL_ENABLE, 0)?;
    let idle = || Ok((registers.read32(PRESENT_STATE)? & INHIBIT == 0).then_some(()));
    poll_timeout(timeout, idle)?;
    if !reset(registers, RESET_ALL)? {
        return Err(QuiesceError::StillActive("its reset doesn't end".to_owned()));
    }
    let active = registers.read32(PRESENT_STATE)? & INHIBIT;
    let pending = registers.read32(INT_STATUS)?;
    if active != 0 || pending != 0 {
        let state = format!("reset left state {active:#x}, interrupts {pending:#x}");
        return Err(QuiesceError::StillActive(state));
    }
    Ok(())
}

/// Resets all or parts, and turns the clock off; whether it ended.
pub(super) fn reset(registers: &dyn RegisterAccess, what: u32) -> Result<bool, AccessError> {
    let clock = if what == RESET_ALL { 0 } else { registers.read32(CLOCK)? };
    registers.write32(CLOCK, clock | what)?;
    let ended = || Ok((registers.read32(CLOCK)? & RESET == 0).then_some(()));
    Ok(poll_timeout(RESET_TIMEOUT, ended)?.is_some())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;

    /// A controller as the specification describes it.
    struct Sdhci {
        registers: RefCell<BTreeMap<u64, u32>>,
        /// How often its state is read until the transfer has ended.
        transfer: RefCell<u32>,
        /// How often the clock is read until a reset has ended.
        resetting: RefCell<u32>,
        writes: RefCell<Vec<(u64, u32)>>,
    }

    impl Sdhci {
        fn new(registers: &[(u64, u32)]) -> Self {
            let own = [(VERSION, 0x8902_0000), (CAPABILITIES, 0x7e_c6481)];
            let registers = own.iter().chain(registers).copied().collect();
            let (transfer, writes) = Default::default();
            Self { registers: RefCell::new(registers), transfer, resetting: 3.into(), writes }
        }

        fn get(&self, offset: u64) -> u32 {
            self.registers.borrow().get(&offset).copied().unwrap_or_default()
        }
    }

    impl RegisterAccess for Sdhci {
        fn read32(&self, offset: u64) -> Result<u32, AccessError> {
            let value = self.get(offset);
            let mut count = match offset {
                PRESENT_STATE => self.transfer.borrow_mut(),
                CLOCK if value & RESET != 0 => self.resetting.borrow_mut(),
                _ => return Ok(value),
            };
            *count = count.saturating_sub(1);
            if offset == PRESENT_STATE {
                return Ok(if *count > 0 { value | 2 } else { value });
            }
            if *count == 0 {
                self.registers.borrow_mut().insert(CLOCK, value & !RESET);
            }
            Ok(value)
        }

        fn write32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
            self.writes.borrow_mut().push((offset, value));
            let mut registers = self.registers.borrow_mut();
            if offset == CLOCK && value & RESET_ALL != 0 {
                registers.retain(|register, _| [VERSION, CAPABILITIES].contains(register));
            }
            registers.insert(offset, value);
            Ok(())
        }
    }

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn a_transfer_ends_and_everything_is_reset() {
        let sdhci = Sdhci {
            transfer: RefCell::new(9),
            ..Sdhci::new(&[(INT_STATUS, 0x8002), (INT_SIGNAL_ENABLE, 0xff), (CLOCK, 7)])
        };
        stop(&sdhci, Duration::from_secs(60)).unwrap();
        assert_eq!(*sdhci.transfer.borrow(), 0);
        for register in [INT_STATUS, INT_SIGNAL_ENABLE, CLOCK] {
            assert_eq!(sdhci.get(register), 0, "{register:#x}");
        }
        assert_eq!(*sdhci.writes.borrow(), [(INT_SIGNAL_ENABLE, 0), (CLOCK, RESET_ALL)]);
    }

    #[test]
    fn a_transfer_that_does_not_end_is_cut_off_and_a_reset_that_does_not_is_an_error() {
        let sdhci = Sdhci { transfer: RefCell::new(u32::MAX), ..Sdhci::new(&[]) };
        let error = stop(&sdhci, SHORT).unwrap_err();
        assert_eq!(error.to_string(), "reset left state 0x2, interrupts 0x0");
        assert!(sdhci.writes.borrow().contains(&(CLOCK, RESET_ALL)));
        let sdhci = Sdhci { resetting: RefCell::new(u32::MAX), ..Sdhci::new(&[]) };
        assert_eq!(stop(&sdhci, SHORT).unwrap_err().to_string(), "its reset doesn't end");
    }

    #[test]
    fn the_clock_goes_on_when_only_the_lines_are_reset() {
        let sdhci = Sdhci::new(&[(CLOCK, 0x0e_0207)]);
        assert!(reset(&sdhci, super::super::registers::RESET_LINES).unwrap());
        assert_eq!(sdhci.get(CLOCK), 0x0e_0207);
    }

    #[test]
    fn another_device_is_left_alone() {
        for (version, capabilities) in
            [(0x8906_0000, 1), (u32::MAX, 1), (0x8902_0000, 0), (0x8902_0000, u32::MAX)]
        {
            let sdhci = Sdhci::new(&[(VERSION, version), (CAPABILITIES, capabilities)]);
            let error = stop(&sdhci, SHORT).unwrap_err();
            assert!(matches!(error, QuiesceError::WrongDevice { expected: NAME, .. }), "{error}");
            assert!(sdhci.writes.borrow().is_empty());
        }
    }
}
