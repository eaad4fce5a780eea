//! The PL011: PrimeCell UART (PL011) Technical Reference Manual, DDI 0183G, revision r1p5.
//!
//! Its transmitter is as fast as the guest writes, so the transmit FIFO is always empty; of the modem's
//! lines CTS, DSR and DCD are asserted; baud rate, word length and DMA are kept and have no effect.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Mutex;

use boot::fdt::{Label, Node};
use vmm_sys_util::eventfd::EventFd;

use super::input_queue::InputQueue;
use super::transmitter::Transmitter;
use crate::bus::{Action, MmioDevice};
use crate::console::{Input, Output};
use crate::irq::{IrqLine, Spi, Trigger};
use crate::ratelimit::LogLimit;
use crate::sync;

// Registers, by their offsets (DDI 0183G, table 3-1).
/// Data.
const DR: u64 = 0x00;
/// Flags.
const FR: u64 = 0x18;
/// IrDA low-power counter.
const ILPR: u64 = 0x20;
/// Integer part of the baud rate divisor.
const IBRD: u64 = 0x24;
/// Fraction of the baud rate divisor.
const FBRD: u64 = 0x28;
/// Line control.
const LCR_H: u64 = 0x2c;
/// Control.
const CR: u64 = 0x30;
/// The FIFO levels at which interrupts are raised.
const IFLS: u64 = 0x34;
/// Interrupt mask: a 1 lets an interrupt through.
const IMSC: u64 = 0x38;
/// Raw interrupt status.
const RIS: u64 = 0x3c;
/// Masked interrupt status.
const MIS: u64 = 0x40;
/// Interrupt clear.
const ICR: u64 = 0x44;
/// DMA control.
const DMACR: u64 = 0x48;
/// Where the identification registers begin, each a byte in a word.
const ID: u64 = 0xfe0;

/// Part 0x011 of designer 0x41, revision r1p5, which has FIFOs of 32 entries, then the PrimeCell's
/// identification (DDI 0183G, 3.3.15 and 3.3.16).
const IDS: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The entries of the receive FIFO.
const FIFO: usize = 32;

// Flags (DDI 0183G, 3.3.3).
/// CTS, DSR and DCD are asserted.
const FR_MODEM: u32 = 0b111;
/// The receive FIFO is empty.
const FR_RXFE: u32 = 1 << 4;
/// The receive FIFO is full.
const FR_RXFF: u32 = 1 << 6;
/// The transmit FIFO is empty.
const FR_TXFE: u32 = 1 << 7;

/// FIFOs are enabled (DDI 0183G, 3.3.7, LCR_H.FEN).
const LCR_H_FEN: u32 = 1 << 4;

// Control (DDI 0183G, 3.3.8).
/// What is sent is received.
const CR_LBE: u32 = 1 << 7;
/// TXE and RXE, which are 1 after a reset.
const CR_RESET: u32 = 0b11 << 8;

/// Both FIFOs at half (DDI 0183G, 3.3.9, after a reset).
const IFLS_RESET: u32 = 0b01_0010;

// Interrupts (DDI 0183G, 3.3.10).
/// The receive FIFO has reached its level.
const RX: u32 = 1 << 4;
/// The transmit FIFO has fallen to its level.
const TX: u32 = 1 << 5;
/// The receive FIFO isn't empty, and nothing was received for the time of 32 bits.
const RT: u32 = 1 << 6;
/// A byte was lost, as the receive FIFO was full.
const OE: u32 = 1 << 10;
/// The interrupts that there are.
const INTERRUPTS: u32 = 0x7ff;

/// A UART whose output goes to a writer and whose input is queued until the guest reads it.
pub struct Pl011 {
    line: Box<dyn IrqLine>,
    transmitter: Transmitter,
    input: InputQueue,
    receiver: VecDeque<u8>,
    /// The interrupts that were raised and stay so until they are cleared: all but RX.
    raised: u32,
    mask: u32,
    control: u32,
    line_control: u32,
    levels: u32,
    /// ILPR, IBRD, FBRD and DMACR, which only keep what is written.
    kept: [u32; 4],
    /// The line is high.
    is_high: bool,
    log: LogLimit,
}

impl Pl011 {
    /// A UART with its interrupt on `line` that writes to `output`, and signals `drained` when there is
    /// room for input again after [`enqueue`](Self::enqueue) refused some.
    pub fn new(line: Box<dyn IrqLine>, output: Box<dyn Output>, drained: EventFd) -> Self {
        Self {
            line,
            transmitter: Transmitter::new(output),
            input: InputQueue::new(drained),
            receiver: VecDeque::with_capacity(FIFO),
            raised: 0,
            mask: 0,
            control: CR_RESET,
            line_control: 0,
            levels: IFLS_RESET,
            kept: [0; 4],
            is_high: false,
            log: LogLimit::new("serial"),
        }
    }

    /// Queues input for the guest; returns the number of bytes that there was room for.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let taken = self.input.push(bytes);
        self.update();
        taken
    }

    /// How many bytes the receiver holds: a FIFO, or one holding register.
    fn depth(&self) -> usize {
        if self.line_control & LCR_H_FEN == 0 { 1 } else { FIFO }
    }

    /// How many bytes in the receiver raise RX (DDI 0183G, 3.3.9, IFLS.RXIFLSEL): eighths of it.
    fn level(&self) -> usize {
        let eighths = match self.levels >> 3 & 7 {
            0 => 1,
            1 => 2,
            2 => 4,
            3 => 6,
            _ => 7,
        };
        (self.depth() * eighths / 8).max(1)
    }

    /// The raw interrupt status.
    fn status(&self) -> u32 {
        if self.receiver.len() >= self.level() { self.raised | RX } else { self.raised }
    }

    fn takes_input(&self) -> bool {
        let enabled = self.mask & (RX | RT) != 0 || self.input.is_polled();
        enabled && self.control & CR_LBE == 0
    }

    /// Puts a byte into the receiver.
    fn receive(&mut self, byte: u8) {
        if self.receiver.len() >= self.depth() {
            self.raised |= OE;
            return;
        }
        self.receiver.push_back(byte);
        // No more will come while the guest doesn't read: the time is over at once.
        self.raised |= RT;
    }

    /// Fills the receiver, if the guest takes input, and updates the line.
    fn update(&mut self) {
        while self.receiver.len() < self.depth() && self.takes_input() {
            let Some(byte) = self.input.front() else { break };
            self.receive(byte);
            self.input.pop(&self.log);
        }
        let high = self.status() & self.mask != 0;
        if high != self.is_high {
            self.is_high = high;
            self.line.set(high);
        }
    }

    fn read_data(&mut self) -> u32 {
        let byte = self.receiver.pop_front().unwrap_or_default();
        if self.receiver.is_empty() {
            self.raised &= !RT;
        }
        byte.into()
    }

    fn flags(&self) -> u32 {
        let receiver = match self.receiver.len() {
            0 => FR_RXFE,
            held if held >= self.depth() => FR_RXFF,
            _ => 0,
        };
        FR_MODEM | FR_TXFE | receiver
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        match offset {
            FR => {
                self.input.note_poll();
                self.update();
                return self.flags();
            }
            DR => {
                // A guest that polls goes on to do so after it has read a byte.
                let byte = self.read_data();
                self.update();
                return byte;
            }
            _ => self.input.reset_polls(),
        }
        match offset {
            LCR_H => self.line_control,
            CR => self.control,
            IFLS => self.levels,
            IMSC => self.mask,
            RIS => self.status(),
            MIS => self.status() & self.mask,
            _ => match kept(offset).and_then(|index| self.kept.get(index)) {
                Some(value) => *value,
                None => id(offset),
            },
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) -> Action {
        let mut action = Action::None;
        self.input.reset_polls();
        match offset {
            DR => action = self.transmit(value.to_le_bytes()[0]),
            LCR_H => self.line_control = value & 0xff,
            CR => self.control = value & 0xffff,
            IFLS => self.levels = value & 0x3f,
            IMSC => self.mask = value & INTERRUPTS,
            ICR => self.raised &= !value,
            _ => {
                if let Some(kept) = kept(offset).and_then(|index| self.kept.get_mut(index)) {
                    *kept = value & 0xffff;
                }
            }
        }
        self.update();
        action
    }

    fn transmit(&mut self, byte: u8) -> Action {
        // It is sent at once, so that the FIFO falls to its level again.
        self.raised |= TX;
        if self.control & CR_LBE != 0 {
            self.receive(byte);
            return Action::None;
        }
        // What fails is told by the check.
        let _ = self.transmitter.write(&[byte]);
        self.transmitter.check()
    }
}

/// The index of a register that only keeps its value.
fn kept(offset: u64) -> Option<usize> {
    [ILPR, IBRD, FBRD, DMACR].iter().position(|register| *register == offset)
}

/// An identification register; other registers read as zero.
fn id(offset: u64) -> u32 {
    let index = offset.checked_sub(ID).and_then(|from| usize::try_from(from / 4).ok());
    index.and_then(|index| IDS.get(index)).map_or(0, |id| u32::from(*id))
}

impl Input for Mutex<Pl011> {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        sync::lock(self).enqueue(bytes)
    }
}

impl MmioDevice for Pl011 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Drivers read 1, 2 or 4 bytes of a register, from its first.
        let value = if offset.is_multiple_of(4) { self.read_register(offset) } else { 0 };
        let bytes = value.to_le_bytes().into_iter().chain(std::iter::repeat(0));
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if !offset.is_multiple_of(4) {
            return Action::None;
        }
        let mut value = [0; 4];
        for (byte, written) in value.iter_mut().zip(data) {
            *byte = *written;
        }
        self.write_register(offset, u32::from_le_bytes(value))
    }

    fn reset(&mut self) {
        self.receiver.clear();
        (self.raised, self.mask, self.line_control, self.kept) = (0, 0, 0, [0; 4]);
        (self.control, self.levels) = (CR_RESET, IFLS_RESET);
        self.input.reset_polls();
        self.update();
    }
}

/// Its node at `base` (Documentation/devicetree/bindings/serial/pl011.yaml); `clock` is the label of the
/// node of the clock that drives UART and bus.
pub fn node(base: u64, size: u64, spi: Spi, clock: &'static str) -> Node {
    Node::at("serial", base)
        .strings("compatible", ["arm,pl011", "arm,primecell"])
        .reg([(base, size)])
        .cells("interrupts", [0, spi.0, Trigger::Level.dt_flags()])
        .refs("clocks", [Label::from(clock), Label::from(clock)])
        .strings("clock-names", ["uartclk", "apb_pclk"])
}

#[cfg(test)]
mod tests;
