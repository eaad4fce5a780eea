//! A PL011 as its driver finds it.

use std::io;
use std::sync::{Arc, Mutex};

use super::*;

/// What was written, and the levels of the line so far.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<(Vec<u8>, Vec<bool>)>>);

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl IrqLine for Recorded {
    fn set(&self, high: bool) {
        self.0.lock().unwrap().1.push(high);
    }
}

impl Recorded {
    fn take(&self) -> (Vec<u8>, Vec<bool>) {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn uart() -> (Pl011, Recorded, EventFd) {
    let (recorded, drained) = (Recorded::default(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let line = Box::new(recorded.clone());
    let uart = Pl011::new(line, Box::new(recorded.clone()), drained.try_clone().unwrap());
    (uart, recorded, drained)
}

fn read(uart: &mut Pl011, register: u64) -> u32 {
    let mut data = [0; 4];
    uart.read(register, &mut data);
    u32::from_le_bytes(data)
}

fn write(uart: &mut Pl011, register: u64, value: u32) {
    assert_eq!(uart.write(register, &value.to_le_bytes()), Action::None);
}

/// One whose driver has enabled FIFOs and interrupts for input.
fn with_interrupts() -> (Pl011, Recorded, EventFd) {
    let (mut uart, recorded, drained) = uart();
    write(&mut uart, LCR_H, 0x70);
    write(&mut uart, CR, 0x301);
    write(&mut uart, IMSC, RX | RT);
    (uart, recorded, drained)
}

fn read_all(uart: &mut Pl011) -> Vec<u8> {
    let mut bytes = Vec::new();
    while read(uart, FR) & FR_RXFE == 0 {
        bytes.push(u8::try_from(read(uart, DR)).unwrap());
    }
    bytes
}

#[test]
fn output_is_written_and_its_interrupt_stays_until_it_is_cleared() {
    let (mut uart, recorded, _) = uart();
    assert_eq!(read(&mut uart, RIS), 0);
    assert_eq!(uart.write(DR, b"h"), Action::None);
    assert_eq!(uart.write(DR, &[b'i', 0]), Action::None);
    assert_eq!(read(&mut uart, RIS), TX);
    write(&mut uart, IMSC, TX);
    assert_eq!(read(&mut uart, MIS), TX);
    write(&mut uart, ICR, TX);
    assert_eq!(recorded.take(), (b"hi".to_vec(), vec![true, false]));
    assert_eq!(read(&mut uart, FR) & (FR_TXFE | 1 << 5), FR_TXFE);
}

#[test]
fn input_raises_the_line_until_it_is_read() {
    let (mut uart, recorded, _) = with_interrupts();
    assert_eq!(uart.enqueue(b"abc"), 3);
    assert_eq!(read(&mut uart, MIS), RT);
    assert_eq!(read_all(&mut uart), b"abc");
    assert_eq!(recorded.take().1, [true, false]);
    let input: Vec<u8> = (0..=255).cycle().take(1000).collect();
    assert_eq!(uart.enqueue(&input), 1000);
    assert_eq!(read(&mut uart, MIS), RX | RT);
    assert_eq!(read(&mut uart, FR) & (FR_RXFF | FR_RXFE), FR_RXFF);
    assert_eq!(read_all(&mut uart), input);
    assert_eq!((recorded.take().1, read(&mut uart, RIS)), (vec![true, false], 0));
}

#[test]
fn the_level_of_the_fifo_is_chosen() {
    let (mut uart, ..) = with_interrupts();
    for (select, level) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28)] {
        write(&mut uart, IFLS, select << 3);
        uart.enqueue(&vec![0; level - 1]);
        assert_eq!(read(&mut uart, RIS), RT, "{level}");
        uart.enqueue(&[0]);
        assert_eq!(read(&mut uart, RIS), RX | RT, "{level}");
        read_all(&mut uart);
    }
}

#[test]
fn input_waits_until_the_guest_takes_it() {
    let (mut uart, recorded, _) = uart();
    uart.enqueue(b"abc");
    // What a driver does first: clear interrupts, and discard what is there.
    write(&mut uart, ICR, 0x7ff);
    assert_eq!(read_all(&mut uart), b"");
    write(&mut uart, IMSC, RT);
    assert_eq!(recorded.take().1, [true]);
    // Without FIFOs it is one byte at a time.
    assert_eq!(read(&mut uart, FR) & FR_RXFF, FR_RXFF);
    assert_eq!(read_all(&mut uart), b"abc");
}

#[test]
fn a_guest_that_polls_gets_input() {
    let (mut uart, recorded, _) = uart();
    uart.enqueue(b"ab");
    let mut got = Vec::new();
    for _ in 0..100 {
        if read(&mut uart, FR) & FR_RXFE == 0 {
            got.push(read(&mut uart, DR));
        }
    }
    assert_eq!((got, recorded.take().1), (vec![b'a'.into(), b'b'.into()], vec![]));
}

#[test]
fn input_beyond_the_queue_is_refused_until_drained() {
    let (mut uart, _, drained) = with_interrupts();
    let input = vec![b'x'; 10_000];
    assert!(uart.enqueue(&input) < input.len() && drained.read().is_err());
    read_all(&mut uart);
    assert!(drained.read().is_ok());
}

#[test]
fn what_is_sent_in_a_loop_comes_back_and_may_overrun() {
    let (mut uart, recorded, _) = uart();
    write(&mut uart, CR, CR_RESET | CR_LBE | 1);
    for byte in [1, 2] {
        write(&mut uart, DR, byte);
    }
    assert_eq!((read(&mut uart, RIS) & OE, read_all(&mut uart)), (OE, vec![1]));
    assert_eq!(recorded.take().0, b"");
}

#[test]
fn it_identifies_itself_and_keeps_its_settings() {
    let (mut uart, ..) = uart();
    let ids: Vec<u32> = (0..8).map(|index| read(&mut uart, ID + 4 * index)).collect();
    assert_eq!(ids, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    for register in [ILPR, IBRD, FBRD, DMACR, LCR_H, CR, IFLS, IMSC] {
        write(&mut uart, register, 0x25);
        assert_eq!(read(&mut uart, register), 0x25, "{register:#x}");
    }
    for register in [1, 2, 0x4c, 0x80, 0x3d, 0xfdc, 0x1000, u64::MAX] {
        write(&mut uart, register, 0xff);
        assert_eq!(read(&mut uart, register), 0, "{register:#x}");
    }
    let mut wide = [0xff; 8];
    uart.read(CR, &mut wide);
    assert_eq!(wide, [0x25, 0, 0, 0, 0, 0, 0, 0]);
}
