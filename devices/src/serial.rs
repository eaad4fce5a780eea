//! The serial console: an ns16550a over vm-superio.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Write};

use boot::fdt::Node;
use vm_superio::Trigger as SerialTrigger;
use vm_superio::serial::{Error, NoEvents, Serial as Uart};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Action, MmioDevice};
use crate::irq::{Spi, Trigger};
use crate::ratelimit::LogLimit;

/// Its input clock in Hz, that of a PC's: only the guest's baud rate arithmetic sees it.
const CLOCK_HZ: u32 = 1_843_200;

/// Input that waits for the guest to read it, at most.
const INPUT_CAPACITY: usize = 4096;

/// The line status register (PC16550D data sheet, section 8.6).
const LSR: u8 = 5;

/// "Received data available" in the interrupt enable register (PC16550D, section 8.4).
const IER_RECEIVED_DATA: u8 = 1 << 0;

/// A guest that reads the line status this often in a row waits for input without interrupts.
const POLLS: u32 = 32;

/// A UART whose output goes to a writer and whose input is queued until the guest reads it.
///
/// The receiver holds one byte at a time. vm-superio raises the interrupt when bytes arrive, but
/// not, as a UART does, for as long as some are left: a driver that takes fewer than there are
/// (Linux's stops at 256) would never hear of the rest. So each byte arrives by itself. And none
/// arrives before the guest takes input, by interrupt or by polling: its driver's first act is to
/// discard what is in the receiver.
pub struct Serial {
    uart: Uart<Interrupt, NoEvents, Transmitter>,
    /// Bytes the receiver has room for when it is empty.
    capacity: usize,
    input: VecDeque<u8>,
    /// Reads of the line status in a row.
    polls: u32,
    drained: EventFd,
    starved: bool,
    broken_output: bool,
    log: LogLimit,
}

/// The UART's interrupt line: an edge per event.
struct Interrupt(EventFd);

impl SerialTrigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where a serial port's output goes.
pub trait Output: Send {
    /// Takes bytes, without ever waiting.
    ///
    /// # Errors
    ///
    /// They can't be written and are lost.
    fn put(&mut self, bytes: &[u8]) -> io::Result<Room>;
}

/// Whether there is room for more output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Left,
    /// Whoever makes it should wait.
    Full,
}

impl<W: Write + Send> Output for W {
    fn put(&mut self, bytes: &[u8]) -> io::Result<Room> {
        self.write_all(bytes).map(|()| Room::Left)
    }
}

/// The UART's transmitter: as far as the UART is concerned it takes everything.
struct Transmitter {
    output: Box<dyn Output>,
    /// What became of the last bytes, until somebody looks.
    last: io::Result<Room>,
}

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.last = self.output.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// A UART that signals `interrupt`, writes to `output`, and signals `drained` when it has
    /// room again after [`enqueue`](Self::enqueue) took less than it was offered.
    pub fn new(interrupt: EventFd, output: Box<dyn Output>, drained: EventFd) -> Self {
        let transmitter = Transmitter { output, last: Ok(Room::Left) };
        let uart = Uart::new(Interrupt(interrupt), transmitter);
        Self {
            capacity: uart.fifo_capacity(),
            uart,
            input: VecDeque::new(),
            polls: 0,
            drained,
            starved: false,
            broken_output: false,
            log: LogLimit::new(Cow::Borrowed("serial")),
        }
    }

    /// Takes input for the guest; returns how many bytes there was room for.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_CAPACITY - self.input.len());
        self.input.extend(bytes.iter().take(taken));
        self.starved = taken < bytes.len();
        self.feed();
        taken
    }

    /// Moves a byte of queued input into the receiver, if it is empty and the guest listens.
    fn feed(&mut self) {
        let Some(byte) = self.input.front().copied() else { return };
        if self.uart.fifo_capacity() < self.capacity || !self.is_listening() {
            return;
        }
        match self.uart.enqueue_raw_bytes(&[byte]) {
            // None is taken in loopback mode: it stays queued.
            Ok(taken) => drop(self.input.drain(..taken)),
            Err(e) => self.log.warn(format_args!("{e}")),
        }
        if self.input.is_empty() && self.starved {
            self.starved = false;
            if let Err(e) = self.drained.write(1) {
                self.log.warn(format_args!("input can't be resumed: {e}"));
            }
        }
    }

    /// Looks at what became of output.
    fn after_output(&mut self) -> Action {
        match std::mem::replace(&mut self.uart.writer_mut().last, Ok(Room::Left)) {
            Ok(Room::Left) => return Action::None,
            Ok(Room::Full) => return Action::AwaitOutput,
            // The guest runs on with its console gone; said once.
            Err(e) if !self.broken_output => {
                self.broken_output = true;
                log::warn!("serial: output can't be written, the rest is lost: {e}");
            }
            Err(_) => (),
        }
        Action::None
    }

    fn is_listening(&self) -> bool {
        self.polls >= POLLS || self.uart.state().interrupt_enable & IER_RECEIVED_DATA != 0
    }
}

impl MmioDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(register), Some(first)) = (u8::try_from(offset), data.first_mut()) {
            *first = self.uart.read(register);
            match register {
                LSR => self.polls = self.polls.saturating_add(1),
                // A guest that polls goes on to do so after it has got a byte.
                0 => (),
                _ => self.polls = 0,
            }
        }
        self.feed();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let (Ok(register), Some(value)) = (u8::try_from(offset), data.first()) else {
            return Action::None;
        };
        if let Err(Error::Trigger(e)) = self.uart.write(register, *value) {
            self.log.warn(format_args!("interrupt lost: {e}"));
        }
        let action = self.after_output();
        // Enabling interrupts may be what the input waits for.
        self.polls = 0;
        self.feed();
        action
    }
}

/// Its node at `base` (Documentation/devicetree/bindings/serial/8250.yaml).
pub fn node(base: u64, size: u64, spi: Spi) -> Node {
    Node::at("serial", base)
        .string("compatible", "ns16550a")
        .reg([(base, size)])
        .cells("interrupts", [0, spi.0, Trigger::Edge.dt_flags()])
        .u32("clock-frequency", CLOCK_HZ)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const IIR: u64 = 2;
    const LSR: u64 = super::LSR as u64;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn eventfd() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK).unwrap()
    }

    fn serial(output: impl super::Output + 'static) -> (Serial, EventFd, EventFd) {
        let (interrupt, drained) = (eventfd(), eventfd());
        let serial = Serial::new(
            interrupt.try_clone().unwrap(),
            Box::new(output),
            drained.try_clone().unwrap(),
        );
        (serial, interrupt, drained)
    }

    fn read(serial: &mut Serial, register: u64) -> u8 {
        let mut data = [0];
        serial.read(register, &mut data);
        data[0]
    }

    fn read_all(serial: &mut Serial) -> Vec<u8> {
        let mut bytes = Vec::new();
        while read(serial, LSR) & 1 != 0 {
            bytes.push(read(serial, DATA));
        }
        bytes
    }

    #[test]
    fn what_the_guest_writes_comes_out() {
        let output = Output::default();
        let (mut serial, ..) = serial(output.clone());
        for byte in *b"hello" {
            assert_eq!(serial.write(DATA, &[byte]), Action::None);
        }
        assert_eq!(*output.0.lock().unwrap(), b"hello");
    }

    /// A serial port whose guest takes interrupts for input.
    fn listening() -> (Serial, EventFd, EventFd) {
        let (mut serial, interrupt, drained) = serial(io::sink());
        let _ = serial.write(IER, &[1]);
        (serial, interrupt, drained)
    }

    #[test]
    fn input_arrives_in_order_with_an_interrupt() {
        let (mut serial, interrupt, _) = listening();
        assert_eq!(serial.enqueue(b"abc"), 3);
        assert!(interrupt.read().is_ok());
        assert_eq!(read_all(&mut serial), b"abc");
    }

    #[test]
    fn a_driver_that_takes_some_bytes_per_interrupt_gets_them_all() {
        let input: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for at_once in [1, 7, 16, 64, 256] {
            let (mut serial, interrupt, _) = listening();
            serial.enqueue(&input);
            let mut got = Vec::new();
            while interrupt.read().is_ok() {
                // As Linux does: the cause first, then data while there is some, to a limit.
                let cause = read(&mut serial, IIR);
                let mut left = at_once;
                while cause & 1 == 0 && left > 0 && read(&mut serial, LSR) & 1 != 0 {
                    got.push(read(&mut serial, DATA));
                    left -= 1;
                }
            }
            assert_eq!(got, input, "{at_once} at once");
        }
    }

    #[test]
    fn input_waits_until_the_guest_listens() {
        let (mut serial, interrupt, _) = serial(io::sink());
        serial.enqueue(b"abc");
        // What a driver does first: discard what is there.
        for register in [LSR, DATA, IIR, 6, LSR, DATA, IIR, 6] {
            read(&mut serial, register);
        }
        assert!(interrupt.read().is_err());
        let _ = serial.write(IER, &[1]);
        assert!(interrupt.read().is_ok());
        assert_eq!(read_all(&mut serial), b"abc");
    }

    #[test]
    fn a_guest_that_polls_gets_input_too() {
        let (mut serial, ..) = serial(io::sink());
        serial.enqueue(b"ab");
        let mut got = Vec::new();
        for _ in 0..100 {
            if read(&mut serial, LSR) & 1 != 0 {
                got.push(read(&mut serial, DATA));
            }
        }
        assert_eq!(got, b"ab");
    }

    #[test]
    fn input_as_long_as_the_queue_is_taken_whole() {
        let (mut serial, _, drained) = listening();
        let input: Vec<u8> = (0..=255).cycle().take(INPUT_CAPACITY).collect();
        assert_eq!(serial.enqueue(&input), INPUT_CAPACITY);
        assert_eq!(read_all(&mut serial), input);
        assert!(drained.read().is_err(), "nothing was refused, so nobody waits");
    }

    #[test]
    fn input_beyond_the_queue_is_refused_until_drained() {
        let (mut serial, _, drained) = listening();
        let input = vec![b'x'; 3 * INPUT_CAPACITY];
        let taken = serial.enqueue(&input);
        assert!((INPUT_CAPACITY..input.len()).contains(&taken), "{taken}");
        assert!(drained.read().is_err());
        read_all(&mut serial);
        assert!(drained.read().is_ok());
        assert_eq!(serial.enqueue(b"y"), 1);
        assert_eq!(read_all(&mut serial), b"y");
    }

    #[test]
    fn a_closed_output_leaves_the_guest_running() {
        let (mut serial, ..) = serial(Broken);
        for byte in *b"lost" {
            assert_eq!(serial.write(DATA, &[byte]), Action::None);
        }
        assert_eq!(read(&mut serial, LSR) & 0x60, 0x60);
    }

    struct Full;

    impl super::Output for Full {
        fn put(&mut self, _: &[u8]) -> io::Result<Room> {
            Ok(Room::Full)
        }
    }

    #[test]
    fn output_without_room_has_the_vcpu_wait_and_nothing_else_does() {
        let (mut serial, ..) = serial(Full);
        assert_eq!(serial.write(DATA, b"x"), Action::AwaitOutput);
        assert_eq!(serial.write(IER, &[0]), Action::None);
        assert_eq!(read(&mut serial, LSR) & 0x60, 0x60);
    }

    #[test]
    fn registers_beyond_the_uart_read_zero() {
        let (mut serial, ..) = serial(io::sink());
        for register in [8, 0xff, 0x100, 0xfff] {
            assert_eq!(read(&mut serial, register), 0, "{register:#x}");
        }
    }
}
