//! The Arm PL011 ("PrimeCell UART"). Its reference manual (TRM) is ARM DDI 0183.

use std::time::Duration;

use super::Binding;
use super::primecell::{APB_PCLK, DEFAULT_RATE, add_primecell, check_part, has_apb_clock};
use crate::vfio::node::{Clock, NodeBuilder};
use crate::vfio::quiesce::{QuiesceError, poll_timeout};
use crate::vfio::region::{AccessError, RegisterAccess};
use crate::vfio::register_table::offset_of;

/// The binding of the PL011.
pub(super) const BINDING: Binding = Binding {
    name: "PL011",
    compatible: &["arm,pl011"],
    kernel_option: Some("CONFIG_SERIAL_AMBA_PL011"),
    registers: TABLE,
    quiesce: |regions| {
        let registers = regions.first().ok_or(QuiesceError::NoRegion(0))?;
        stop(*registers, SEND_TIMEOUT)
    },
    refine,
    self_test: None,
};

/// How long it may take to send what waits to be sent: the whole FIFO at 9600 baud.
const SEND_TIMEOUT: Duration = Duration::from_millis(40);

/// The clock that baud rates are divided from: the first, by which drivers get it. Its rate
/// matters.
const UARTCLK: &str = "uartclk";

/// The part number.
const PL011: u32 = 0x011;

/// The registers: TRM, chapter 3, "Summary of registers" and "Register descriptions". They are of up to 16
/// bits each, in words of 32.
const TABLE: &str = "\
000 UARTDR DATA=7:0 FE=8 PE=9 BE=10 OE=11
004 UARTRSR FE=0 PE=1 BE=2 OE=3
018 UARTFR CTS=0 DSR=1 DCD=2 BUSY=3 RXFE=4 TXFF=5 RXFF=6 TXFE=7 RI=8
020 UARTILPR
024 UARTIBRD
028 UARTFBRD
02c UARTLCR_H BRK=0 PEN=1 EPS=2 STP2=3 FEN=4 WLEN=6:5 SPS=7
030 UARTCR UARTEN=0 SIREN=1 SIRLP=2 LBE=7 TXE=8 RXE=9 DTR=10 RTS=11 Out1=12 Out2=13 RTSEn=14 CTSEn=15
034 UARTIFLS TXIFLSEL=2:0 RXIFLSEL=5:3
038 UARTIMSC RIMIM=0 CTSMIM=1 DCDMIM=2 DSRMIM=3 RXIM=4 TXIM=5 RTIM=6 FEIM=7 PEIM=8 BEIM=9 OEIM=10
03c UARTRIS RIRMIS=0 CTSRMIS=1 DCDRMIS=2 DSRRMIS=3 RXRIS=4 TXRIS=5 RTRIS=6 FERIS=7 PERIS=8 BERIS=9 OERIS=10
040 UARTMIS RIMMIS=0 CTSMMIS=1 DCDMMIS=2 DSRMMIS=3 RXMIS=4 TXMIS=5 RTMIS=6 FEMIS=7 PEMIS=8 BEMIS=9 OEMIS=10
044 UARTICR RIMIC=0 CTSMIC=1 DCDMIC=2 DSRMIC=3 RXIC=4 TXIC=5 RTIC=6 FEIC=7 PEIC=8 BEIC=9 OEIC=10
048 UARTDMACR RXDMAE=0 TXDMAE=1 DMAONERR=2
fe0*4+4 UARTPeriphID
ff0*4+4 UARTPCellID
";

/// Flag Register.
const UARTFR: u64 = offset_of(TABLE, "UARTFR");
/// Flag Register: something is being sent, or waits for it, whether the UART is enabled or not.
const BUSY: u32 = 1 << 3;
/// Line Control Register.
const UARTLCR_H: u64 = offset_of(TABLE, "UARTLCR_H");
/// Line Control Register: send a break.
const BRK: u32 = 1 << 0;
/// Line Control Register: the FIFOs are on; clearing it empties them.
const FEN: u32 = 1 << 4;
/// Control Register: all off.
const UARTCR: u64 = offset_of(TABLE, "UARTCR");
/// Control Register: the UART is enabled.
const UARTEN: u32 = 1 << 0;
/// Interrupt Mask Set/Clear Register: a bit for each interrupt that is enabled.
const UARTIMSC: u64 = offset_of(TABLE, "UARTIMSC");
/// Masked Interrupt Status Register: interrupts that are high.
const UARTMIS: u64 = offset_of(TABLE, "UARTMIS");
/// Interrupt Clear Register.
const UARTICR: u64 = offset_of(TABLE, "UARTICR");
/// Interrupt Clear Register: all eleven.
const ALL: u32 = 0x7ff;
/// DMA Control Register: all off.
const UARTDMACR: u64 = offset_of(TABLE, "UARTDMACR");

/// Makes of a host's node one that Linux' AMBA bus and its pl011 driver take
/// (Documentation/devicetree/bindings/serial/pl011.yaml).
fn refine(node: &mut NodeBuilder) {
    // Bindings/serial/serial.yaml names the node.
    "serial".clone_into(&mut node.name);
    add_primecell(node);
    if node.clocks.is_empty() {
        node.clocks.push(Clock::new(Some(UARTCLK), None));
    }
    let names = [UARTCLK, APB_PCLK];
    for (clock, name) in node.clocks.iter_mut().zip(names) {
        clock.name.get_or_insert_with(|| name.to_owned());
    }
    if !has_apb_clock(&node.clocks) {
        // Behind those with names, which may be followed by some without.
        let named = node.clocks.iter().take_while(|clock| clock.name.is_some()).count();
        node.clocks.insert(named, Clock::new(Some(APB_PCLK), None));
    }
    // The first one is the baud rate's, whatever it is called.
    for clock in node.clocks.iter_mut().skip(1) {
        if clock.name.as_deref() == Some(APB_PCLK) && clock.reference.is_none() {
            clock.rate.get_or_insert(DEFAULT_RATE);
        }
    }
}

/// Stops the UART: nothing is sent or received, no DMA is requested, no interrupt is high. Waits at
/// most `timeout` for what is being sent, and as long for its last character.
fn stop(registers: &dyn RegisterAccess, timeout: Duration) -> Result<(), QuiesceError> {
    check_part(registers, PL011, "PL011")?;
    registers.write32(UARTDMACR, 0)?;
    registers.write32(UARTIMSC, 0)?;
    if registers.read32(UARTCR)? & UARTEN != 0 {
        // The last output of its former owner. What flow control holds back isn't waited for.
        wait_until_idle(registers, timeout)?;
    }
    registers.write32(UARTCR, 0)?;
    let line = registers.read32(UARTLCR_H)?;
    registers.write32(UARTLCR_H, line & !(FEN | BRK))?;
    let idle = wait_until_idle(registers, timeout)?;
    registers.write32(UARTICR, ALL)?;
    if let pending @ 1.. = registers.read32(UARTMIS)? {
        return Err(QuiesceError::StillActive(format!("interrupts {pending:#x} are still high")));
    }
    if !idle {
        return Err(QuiesceError::StillActive("it is still sending".to_owned()));
    }
    Ok(())
}

/// Waits until nothing is being sent; whether it came to that.
fn wait_until_idle(registers: &dyn RegisterAccess, timeout: Duration) -> Result<bool, AccessError> {
    let idle = || Ok((registers.read32(UARTFR)? & BUSY == 0).then_some(()));
    Ok(poll_timeout(timeout, idle)?.is_some())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::time::Instant;

    use super::*;
    use crate::vfio::testing::node_builder;

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
    fn a_busy_uart_sends_what_it_holds_and_is_turned_off() {
        let uart = Uart::new(&[
            (UARTCR, 0x301),
            (UARTLCR_H, 0x71),
            (UARTIMSC, 0x50),
            (0x03c, 0x70),
            (UARTDMACR, 3),
        ]);
        *uart.waiting.borrow_mut() = 16;
        stop(&uart, Duration::from_secs(60)).unwrap();
        assert_eq!(*uart.waiting.borrow(), 0);
        for (register, value) in
            [(UARTCR, 0), (UARTLCR_H, 0x60), (UARTIMSC, 0), (0x03c, 0), (UARTDMACR, 0)]
        {
            assert_eq!(uart.get(register), value, "{register:#x}");
        }
        let writes = uart.writes.borrow();
        let off = writes.iter().position(|write| *write == (UARTCR, 0));
        let masked = writes.iter().position(|write| *write == (UARTIMSC, 0));
        assert!(masked < off, "no interrupt while it sends: {writes:x?}");
    }

    #[test]
    fn what_a_disabled_uart_holds_is_discarded_at_once() {
        let uart = Uart::new(&[(UARTCR, 0x300), (UARTLCR_H, 0x70)]);
        *uart.waiting.borrow_mut() = 16;
        let started = Instant::now();
        stop(&uart, Duration::from_secs(120)).unwrap();
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_uart_that_does_not_stop_is_an_error() {
        let uart = Uart { stuck: true, ..Uart::new(&[(UARTCR, 1)]) };
        let error = stop(&uart, SHORT).unwrap_err();
        assert_eq!(error.to_string(), "it is still sending");
        assert_eq!(uart.get(UARTCR), 0, "but it is off");
    }

    #[test]
    fn another_device_is_left_alone() {
        for id in [0, 0x30, 0xff] {
            let uart = Uart::new(&[(0xfe0, id)]);
            let error = stop(&uart, SHORT).unwrap_err();
            assert!(
                matches!(error, QuiesceError::WrongDevice { expected: "PL011", .. }),
                "{error}"
            );
            assert!(uart.writes.borrow().is_empty());
        }
    }

    #[test]
    fn the_first_clock_is_for_baud_rates_and_one_is_apb_pclk() {
        type Clocks<'a> = &'a [(Option<&'a str>, Option<u32>)];
        let apb = (Some(APB_PCLK), Some(DEFAULT_RATE));
        let cases: [(Clocks<'_>, Clocks<'_>); 7] = [
            (&[], &[(Some(UARTCLK), None), apb]),
            (&[(None, Some(7))], &[(Some(UARTCLK), Some(7)), apb]),
            (&[(None, Some(7)), (None, None)], &[(Some(UARTCLK), Some(7)), apb]),
            (
                &[(Some(UARTCLK), Some(7)), (Some(APB_PCLK), Some(8))],
                &[(Some(UARTCLK), Some(7)), (Some(APB_PCLK), Some(8))],
            ),
            (&[(Some("uart"), None), (Some(APB_PCLK), None)], &[(Some("uart"), None), apb]),
            // Only one, which is both: nobody knows how fast it is.
            (&[(Some(APB_PCLK), None)], &[(Some(APB_PCLK), None)]),
            (
                &[(Some("a"), Some(7)), (Some("b"), None), (None, None)],
                &[(Some("a"), Some(7)), (Some("b"), None), apb, (None, None)],
            ),
        ];
        for (host, guest) in cases {
            let mut builder = node_builder(&["arm,pl011"]);
            builder.clocks = host.iter().map(|(name, rate)| Clock::new(*name, *rate)).collect();
            refine(&mut builder);
            let found: Vec<_> =
                builder.clocks.iter().map(|clock| (clock.name.as_deref(), clock.rate)).collect();
            assert_eq!(found, guest, "{host:?}");
            assert_eq!(builder.compatible, ["arm,pl011", "arm,primecell"]);
            assert_eq!(builder.name, "serial");
        }
    }
}
