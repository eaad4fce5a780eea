//! The ns16550a, over vm-superio.

use std::io;
use std::sync::Mutex;

use boot::fdt::Node;
use vm_superio::Trigger as SerialTrigger;
use vm_superio::serial::{Error, NoEvents, Serial as Uart};
use vmm_sys_util::eventfd::EventFd;

use super::input_queue::InputQueue;
use super::transmitter::Transmitter;
use crate::bus::{Action, MmioDevice};
use crate::console::{Input, Output};
use crate::irq::{Spi, Trigger};
use crate::ratelimit::LogLimit;
use crate::sync;

/// The input clock in Hz, that of a PC: only the guest's baud rate arithmetic uses it.
const CLOCK_HZ: u32 = 1_843_200;

/// The line status register (PC16550D data sheet, section 8.6).
const LSR: u8 = 5;

/// Registers, the value that they are reset to, and, for the first two, the line control in which they are
/// the divisor, which vm-superio begins with (PC16550D, section 8, table II).
const RESET: [(u8, u8); 7] =
    [(LCR, DIVISOR_ACCESS), (0, 12), (1, 0), (LCR, 0b11), (1, 0), (4, 1 << 3), (7, 0)];
const IIR: u8 = 2;
const LCR: u8 = 3;
const DIVISOR_ACCESS: u8 = 1 << 7;

/// "Received data available" in the interrupt enable register (PC16550D, section 8.4).
const IER_RECEIVED_DATA: u8 = 1 << 0;

/// A UART whose output goes to a writer and whose input is queued until the guest reads it.
///
/// The receiver holds one byte at a time: vm-superio raises the interrupt when bytes arrive, but
/// not, as a UART does, for as long as some are left, so that a driver that reads only some of them
/// (Linux's stops at 256) would not be interrupted for the rest.
pub struct Serial {
    uart: Uart<Interrupt, NoEvents, Transmitter>,
    /// The number of bytes that an empty receiver has room for.
    capacity: usize,
    input: InputQueue,
    log: LogLimit,
}

/// The UART's interrupt, an edge for each event.
struct Interrupt(EventFd);

impl SerialTrigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Serial {
    /// A UART that signals `interrupt`, writes to `output`, and signals `drained` when there is room
    /// for input again after [`enqueue`](Self::enqueue) refused some.
    pub fn new(interrupt: EventFd, output: Box<dyn Output>, drained: EventFd) -> Self {
        let uart = Uart::new(Interrupt(interrupt), Transmitter::new(output));
        Self {
            capacity: uart.fifo_capacity(),
            uart,
            input: InputQueue::new(drained),
            log: LogLimit::new("serial"),
        }
    }

    /// Queues input for the guest; returns the number of bytes that there was room for.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let taken = self.input.push(bytes);
        self.fill_receiver();
        taken
    }

    /// Moves a byte of queued input into the receiver, if it is empty and the guest takes input.
    #[inline]
    fn fill_receiver(&mut self) {
        if let Some(byte) = self.input.front() {
            self.receive(byte);
        }
    }

    fn receive(&mut self, byte: u8) {
        if self.uart.fifo_capacity() < self.capacity || !self.takes_input() {
            return;
        }
        match self.uart.enqueue_raw_bytes(&[byte]) {
            // None is taken in loopback mode: it stays queued.
            Ok(0) => (),
            Ok(_) => self.input.pop(&self.log),
            Err(e) => self.log.warn(format_args!("{e}")),
        }
    }

    fn takes_input(&self) -> bool {
        self.input.is_polled() || self.uart.state().interrupt_enable & IER_RECEIVED_DATA != 0
    }
}

impl Input for Mutex<Serial> {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        sync::lock(self).enqueue(bytes)
    }
}

impl MmioDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Some((first, rest)) = data.split_first_mut() else { return };
        // A loop, as most accesses are of one byte, and `fill` calls memset for none.
        for byte in rest {
            *byte = 0;
        }
        let Ok(register) = u8::try_from(offset) else {
            *first = 0;
            return;
        };
        *first = self.uart.read(register);
        match register {
            LSR => self.input.note_poll(),
            // A guest that polls goes on to do so after it has read a byte.
            0 => (),
            _ => self.input.reset_polls(),
        }
        self.fill_receiver();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let (Ok(register), Some(value)) = (u8::try_from(offset), data.first()) else {
            return Action::None;
        };
        if let Err(Error::Trigger(e)) = self.uart.write(register, *value) {
            self.log.warn(format_args!("interrupt lost: {e}"));
        }
        let action = self.uart.writer_mut().check();
        // Input may have been waiting for the guest to enable interrupts.
        self.input.reset_polls();
        self.fill_receiver();
        action
    }

    fn reset(&mut self) {
        for (register, value) in RESET {
            // No interrupt is enabled by these.
            let _ = self.uart.write(register, value);
        }
        // What the receiver held is lost, as is what its FIFO has in loopback mode.
        for _ in 0..self.capacity {
            self.uart.read(0);
        }
        // Reading an interrupt's cause ends it.
        self.uart.read(IIR);
        self.input.reset_polls();
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
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::super::input_queue::INPUT_CAPACITY;
    use super::*;
    use crate::console::{self, Room};

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const IIR: u64 = super::IIR as u64;
    const LSR: u64 = super::LSR as u64;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
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

    fn serial(output: impl console::Output + 'static) -> (Serial, EventFd, EventFd) {
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
    fn output_of_the_guest_is_written() {
        let output = Written::default();
        let (mut serial, ..) = serial(output.clone());
        for byte in *b"hello" {
            assert_eq!(serial.write(DATA, &[byte]), Action::None);
        }
        assert_eq!(*output.0.lock().unwrap(), b"hello");
    }

    /// A serial port whose guest has enabled the interrupt for input.
    fn with_interrupt() -> (Serial, EventFd, EventFd) {
        let (mut serial, interrupt, drained) = serial(io::sink());
        let _ = serial.write(IER, &[1]);
        (serial, interrupt, drained)
    }

    #[test]
    fn input_arrives_in_order_with_an_interrupt() {
        let (mut serial, interrupt, _) = with_interrupt();
        assert_eq!(serial.enqueue(b"abc"), 3);
        assert!(interrupt.read().is_ok());
        assert_eq!(read_all(&mut serial), b"abc");
    }

    #[test]
    fn a_driver_that_reads_some_bytes_per_interrupt_gets_all_of_them() {
        let input: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for at_once in [1, 7, 16, 64, 256] {
            let (mut serial, interrupt, _) = with_interrupt();
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
    fn input_waits_until_the_guest_takes_it() {
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
    fn a_guest_that_polls_gets_input() {
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
    fn input_as_long_as_the_queue_is_taken() {
        let (mut serial, _, drained) = with_interrupt();
        let input: Vec<u8> = (0..=255).cycle().take(INPUT_CAPACITY).collect();
        assert_eq!(serial.enqueue(&input), INPUT_CAPACITY);
        assert_eq!(read_all(&mut serial), input);
        assert!(drained.read().is_err(), "nothing was refused");
    }

    #[test]
    fn input_beyond_the_queue_is_refused_until_drained() {
        let (mut serial, _, drained) = with_interrupt();
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
    fn a_guest_runs_on_without_output() {
        let (mut serial, ..) = serial(Broken);
        for byte in *b"lost" {
            assert_eq!(serial.write(DATA, &[byte]), Action::None);
        }
        assert_eq!(read(&mut serial, LSR) & 0x60, 0x60);
    }

    struct Full;

    impl console::Output for Full {
        fn put(&mut self, _: &[u8]) -> io::Result<Room> {
            Ok(Room::Full)
        }
    }

    #[test]
    fn only_output_without_room_makes_the_vcpu_wait() {
        let (mut serial, ..) = serial(Full);
        assert_eq!(serial.write(DATA, b"x"), Action::AwaitOutput);
        assert_eq!(serial.write(IER, &[0]), Action::None);
        assert_eq!(read(&mut serial, LSR) & 0x60, 0x60);
    }

    #[test]
    fn a_reset_leaves_the_registers_as_at_first_and_input_to_come() {
        let (mut serial, interrupt, _) = serial(io::sink());
        let registers = |serial: &mut Serial| -> Vec<u8> {
            [IER, IIR, 3, 4, LSR, 6, 7].iter().map(|register| read(serial, *register)).collect()
        };
        let first = registers(&mut serial);
        for (register, value) in [(3, 0x83), (0, 1), (3, 0x1f), (IER, 0xf), (4, 0x1f), (7, 9)] {
            let _ = serial.write(register, &[value]);
        }
        for _ in 0..40 {
            let _ = serial.write(DATA, &[1]);
        }
        let _ = serial.write(4, &[8]);
        serial.enqueue(b"ab");
        MmioDevice::reset(&mut serial);
        let _ = interrupt.read();
        assert_eq!(registers(&mut serial), first);
        let _ = serial.write(IER, &[1]);
        assert!(read_all(&mut serial).ends_with(b"b"));
    }

    #[test]
    fn registers_beyond_the_uart_read_zero() {
        let (mut serial, ..) = serial(io::sink());
        for register in [8, 0xff, 0x100, 0xfff] {
            assert_eq!(read(&mut serial, register), 0, "{register:#x}");
        }
    }
}
