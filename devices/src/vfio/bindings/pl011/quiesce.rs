//! Stopping the UART: nothing is sent or received, no DMA is asked for, no interrupt is high.

use std::time::Duration;

use super::super::primecell::check_part;
use crate::vfio::quiesce::{QuiesceError, poll_timeout};
use crate::vfio::region::{AccessError, RegisterAccess};

// TRM, chapter 3, "Summary of registers": offsets in bytes, of up to 16 bits each.

/// Flag Register.
const UARTFR: u64 = 0x018;
/// Flag Register: something is being sent, or waits for it, whether the UART is enabled or not.
const BUSY: u32 = 1 << 3;
/// Line Control Register.
const UARTLCR_H: u64 = 0x02c;
/// Line Control Register: send a break.
const BRK: u32 = 1 << 0;
/// Line Control Register: the FIFOs are on; clearing it empties them.
const FEN: u32 = 1 << 4;
/// Control Register: all off.
const UARTCR: u64 = 0x030;
/// Control Register: the UART is enabled.
const UARTEN: u32 = 1 << 0;
/// Interrupt Mask Set/Clear Register: a bit for each interrupt that is let through.
const UARTIMSC: u64 = 0x038;
/// Masked Interrupt Status Register: interrupts that are high.
const UARTMIS: u64 = 0x040;
/// Interrupt Clear Register.
const UARTICR: u64 = 0x044;
/// Interrupt Clear Register: all eleven.
const ALL: u32 = 0x7ff;
/// DMA Control Register: all off.
const UARTDMACR: u64 = 0x048;

/// The part number.
const PL011: u32 = 0x011;

/// Stops the UART, waiting at most `patience` for what is being sent, and as long for its last
/// character.
pub(super) fn quiesce(
    registers: &dyn RegisterAccess,
    patience: Duration,
) -> Result<(), QuiesceError> {
    check_part(registers, PL011, "PL011")?;
    registers.write32(UARTDMACR, 0)?;
    registers.write32(UARTIMSC, 0)?;
    if registers.read32(UARTCR)? & UARTEN != 0 {
        // The last words of whoever had it. What flow control holds back isn't waited for.
        is_idle(registers, patience)?;
    }
    registers.write32(UARTCR, 0)?;
    let line = registers.read32(UARTLCR_H)?;
    registers.write32(UARTLCR_H, line & !(FEN | BRK))?;
    let idle = is_idle(registers, patience)?;
    registers.write32(UARTICR, ALL)?;
    if let pending @ 1.. = registers.read32(UARTMIS)? {
        return Err(QuiesceError::StillActive(format!("interrupts {pending:#x} are still high")));
    }
    if !idle {
        return Err(QuiesceError::StillActive("it is still sending".to_owned()));
    }
    Ok(())
}

/// Waits until nothing is being sent, and says whether that is so.
fn is_idle(registers: &dyn RegisterAccess, patience: Duration) -> Result<bool, AccessError> {
    let idle = || Ok((registers.read32(UARTFR)? & BUSY == 0).then_some(()));
    Ok(poll_timeout(patience, idle)?.is_some())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::time::Instant;

    use super::*;

    /// A UART that behaves as the TRM says, sending one character whenever it is asked how far it
    /// is.
    struct Uart {
        registers: RefCell<BTreeMap<u64, u32>>,
        /// Characters that wait to be sent.
        waiting: RefCell<u32>,
        /// Never ends sending.
        stuck: bool,
        writes: RefCell<Vec<(u64, u32)>>,
    }

    impl Uart {
        fn new(registers: &[(u64, u32)]) -> Self {
            let id = [(0xfe0, 0x11), (0xfe4, 0x10), (0xfe8, 0x34), (0xfec, 0)];
            let registers = id.iter().chain(registers).copied().collect();
            let (waiting, writes) = Default::default();
            Self { registers: RefCell::new(registers), waiting, stuck: false, writes }
        }

        fn get(&self, offset: u64) -> u32 {
            self.registers.borrow().get(&offset).copied().unwrap_or_default()
        }
    }

    impl RegisterAccess for Uart {
        fn read32(&self, offset: u64) -> Result<u32, AccessError> {
            let mut waiting = self.waiting.borrow_mut();
            Ok(match offset {
                UARTFR => {
                    let busy = self.stuck || *waiting > 0;
                    if self.get(UARTCR) & UARTEN != 0 {
                        *waiting = waiting.saturating_sub(1);
                    }
                    if busy { BUSY } else { 0 }
                }
                UARTMIS => self.get(0x03c) & self.get(UARTIMSC),
                _ => self.get(offset),
            })
        }

        fn write32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
            self.writes.borrow_mut().push((offset, value));
            match offset {
                UARTLCR_H if value & FEN == 0 => *self.waiting.borrow_mut() = 0,
                UARTICR => {
                    let raised = self.get(0x03c) & !value;
                    self.registers.borrow_mut().insert(0x03c, raised);
                }
                _ => {}
            }
            self.registers.borrow_mut().insert(offset, value);
            Ok(())
        }
    }

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn a_busy_uart_sends_its_last_words_and_is_off() {
        let uart = Uart::new(&[
            (UARTCR, 0x301),
            (UARTLCR_H, 0x71),
            (UARTIMSC, 0x50),
            (0x03c, 0x70),
            (UARTDMACR, 3),
        ]);
        *uart.waiting.borrow_mut() = 16;
        quiesce(&uart, Duration::from_secs(10)).unwrap();
        assert_eq!(*uart.waiting.borrow(), 0);
        for (register, value) in
            [(UARTCR, 0), (UARTLCR_H, 0x60), (UARTIMSC, 0), (0x03c, 0), (UARTDMACR, 0)]
        {
            assert_eq!(uart.get(register), value, "{register:#x}");
        }
        let writes = uart.writes.borrow();
        let off = writes.iter().position(|write| *write == (UARTCR, 0));
        let masked = writes.iter().position(|write| *write == (UARTIMSC, 0));
        assert!(masked < off, "no interrupt while it is waited for: {writes:x?}");
    }

    #[test]
    fn what_a_disabled_uart_was_to_send_is_forgotten_at_once() {
        let uart = Uart::new(&[(UARTCR, 0x300), (UARTLCR_H, 0x70)]);
        *uart.waiting.borrow_mut() = 16;
        let started = Instant::now();
        quiesce(&uart, Duration::from_secs(10)).unwrap();
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn one_that_does_not_stop_is_an_error() {
        let uart = Uart { stuck: true, ..Uart::new(&[(UARTCR, 1)]) };
        let error = quiesce(&uart, SHORT).unwrap_err();
        assert_eq!(error.to_string(), "it is still sending");
        assert_eq!(uart.get(UARTCR), 0, "but it is off");
    }

    #[test]
    fn another_device_is_left_alone() {
        for id in [0, 0x30, 0xff] {
            let uart = Uart::new(&[(0xfe0, id)]);
            let error = quiesce(&uart, SHORT).unwrap_err();
            assert!(
                matches!(error, QuiesceError::WrongDevice { expected: "PL011", .. }),
                "{error}"
            );
            assert!(uart.writes.borrow().is_empty());
        }
    }
}
