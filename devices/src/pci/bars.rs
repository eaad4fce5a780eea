//! Base address registers: where a guest has a function's registers decode
//! (PCI Local Bus 3.0, 6.2.5).

use super::function::{Space, Window};
use super::register::{change, merge};

/// The configuration space's offset of the first base address register.
const FIRST: u16 = 0x10;
/// Of what follows the last.
const END: u16 = 0x28;
/// Of the expansion ROM's base address register.
const ROM: u16 = 0x30;
/// The ROM's number among the registers.
const ROM_INDEX: usize = 6;

/// Flags in a register's low bits: decodes I/O ports; decodes 64 bits; may be prefetched.
const IO: u32 = 1;
const WIDE: u32 = 0b100;
const PREFETCHABLE: u32 = 0b1000;
/// The ROM's decoding is on, if the command register's is.
const ROM_ENABLE: u32 = 1;

/// Bits of the command register: I/O and memory decoding (6.2.2).
const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Memory.
    Memory {
        /// In bytes.
        size: u64,
        /// By 64 address bits: the register takes up two.
        wide: bool,
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// I/O ports.
    Io {
        /// In bytes.
        size: u64,
    },
}

/// A function's registers as no function can have them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// Its size isn't one that a register can express.
    #[error("BAR {bar} can't be {size:#x} bytes")]
    Size {
        /// Which: 0 to 5, or 6, the expansion ROM's.
        bar: u8,
        /// Its size.
        size: u64,
    },
    /// It takes up two registers, and the second isn't free.
    #[error("BAR {0} has 64 bits, and the register behind it isn't free for their upper half")]
    NoUpperHalf(u8),
}

/// A register: the upper half of a 64-bit one is one too.
#[derive(Clone, Copy, Debug, Default)]
struct Register {
    value: u32,
    /// The bits that the guest may write.
    writable: u32,
}

/// The base address registers of a type 0 header, the expansion ROM's, and the decoding bits of the
/// command register.
///
/// Sizes are found as the specification has it (6.2.5.1): all ones are written, and the bits below
/// the size read as zero. Addresses are zero and decoding is off at first, as after a reset.
#[derive(Debug)]
pub struct Bars {
    bars: [Option<Bar>; 6],
    rom: Option<u64>,
    registers: [Register; 7],
    command: u16,
}

impl Bars {
    /// Registers that decode this; for one of 64 bits the next must be `None`. `rom` is the
    /// expansion ROM's size in bytes.
    ///
    /// # Errors
    ///
    /// No function has such registers.
    #[cold]
    pub fn new(bars: [Option<Bar>; 6], rom: Option<u64>) -> Result<Self, BarError> {
        let mut registers = [Register::default(); 7];
        for (number, bar) in (0u8..).zip(bars) {
            let Some(bar) = bar else { continue };
            let (flags, reserved, limit, size) = bar.shape();
            if !size.is_power_of_two() || size <= u64::from(reserved) || size > limit {
                return Err(BarError::Size { bar: number, size });
            }
            let [low, high] = halves(!(size - 1));
            let index = usize::from(number);
            if let Some(register) = registers.get_mut(index) {
                *register = Register { value: flags, writable: low & !reserved };
            }
            if flags & (IO | WIDE) == WIDE {
                let free = bars.get(index + 1).is_some_and(Option::is_none);
                let upper = registers.get_mut(index + 1).filter(|_| free);
                let upper = upper.ok_or(BarError::NoUpperHalf(number))?;
                *upper = Register { value: 0, writable: high };
            }
        }
        if let Some(size) = rom {
            // Bits 31 to 11 are the address (6.2.5.2).
            if !size.is_power_of_two() || !(1 << 11..=1 << 31).contains(&size) {
                return Err(BarError::Size { bar: 6, size });
            }
            let [low, _] = halves(!(size - 1));
            registers[ROM_INDEX] = Register { value: 0, writable: low | ROM_ENABLE };
        }
        Ok(Self { bars, rom, registers, command: 0 })
    }

    /// Whether the dword of configuration space in which `offset` lies is one of these registers.
    pub fn covers(offset: u16) -> bool {
        index(offset).is_some()
    }

    /// What a BAR decodes: 0 to 5.
    pub fn bar(&self, number: u8) -> Option<Bar> {
        self.bars.get(usize::from(number)).copied().flatten()
    }

    /// Reads within one of these registers, at `offset` of configuration space; zero elsewhere.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let value = index(offset).and_then(|index| self.registers.get(index));
        let bytes = value.map_or(0, |register| register.value).to_le_bytes();
        super::register::read(&bytes, u64::from(offset % 4), data);
    }

    /// Writes within one of these registers, at `offset` of configuration space.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let register = index(offset).and_then(|index| self.registers.get_mut(index));
        if let Some(Register { value, writable }) = register {
            let new = merge(*value, usize::from(offset % 4), data);
            *value = change(*value, new, *writable);
        }
    }

    /// The command register now has this value; only its decoding bits matter here.
    pub fn set_command(&mut self, command: u16) {
        self.command = command & (COMMAND_IO | COMMAND_MEMORY);
    }

    /// As a reset does: all addresses zero, no decoding.
    pub fn reset(&mut self) {
        self.command = 0;
        for Register { value, writable } in &mut self.registers {
            *value &= !*writable;
        }
    }

    /// What is decoded now, wherever that is.
    pub fn windows(&self) -> Vec<Window> {
        self.decoded().collect()
    }

    /// Whether this is decoded now.
    pub fn decodes(&self, window: &Window) -> bool {
        self.decoded().any(|decoded| decoded == *window)
    }

    fn decoded(&self) -> impl Iterator<Item = Window> {
        let bars = (0u8..).zip(self.bars).filter_map(|(bar, kind)| {
            let (space, size, bit) = match kind? {
                Bar::Memory { size, .. } => (Space::Memory, size, COMMAND_MEMORY),
                Bar::Io { size } => (Space::Io, size, COMMAND_IO),
            };
            let start = self.address(usize::from(bar));
            let end = start.checked_add(size).filter(|_| self.command & bit != 0)?;
            Some(Window { bar, space, range: start..end })
        });
        bars.chain(self.rom_window())
    }

    fn rom_window(&self) -> Option<Window> {
        let Register { value, writable } = self.registers[ROM_INDEX];
        let on = value & ROM_ENABLE != 0 && self.command & COMMAND_MEMORY != 0;
        let size = self.rom.filter(|_| on)?;
        let start = u64::from(value & writable & !ROM_ENABLE);
        Some(Window { bar: 6, space: Space::Memory, range: start..start + size })
    }

    /// The address in a register, and the next if it has 64 bits.
    fn address(&self, index: usize) -> u64 {
        let bits = |index| {
            let register: Option<&Register> = self.registers.get(index);
            register.map_or(0, |register| u64::from(register.value & register.writable))
        };
        match self.bars.get(index) {
            Some(Some(Bar::Memory { wide: true, .. })) => bits(index + 1) << 32 | bits(index),
            _ => bits(index),
        }
    }
}

impl Bar {
    /// Its flags, the low bits that aren't address, the largest size and its own.
    fn shape(self) -> (u32, u32, u64, u64) {
        match self {
            Self::Memory { size, wide, prefetchable } => {
                let wide_flag = if wide { WIDE } else { 0 };
                let prefetchable = if prefetchable { PREFETCHABLE } else { 0 };
                (wide_flag | prefetchable, 0xf, if wide { 1 << 63 } else { 1 << 31 }, size)
            }
            // The guest's window has 64 KiB of ports.
            Self::Io { size } => (IO, 0b11, 1 << 16, size),
        }
    }

    /// Its size in bytes.
    pub fn size(self) -> u64 {
        let (.., size) = self.shape();
        size
    }
}

/// The number of the register in which `offset` lies.
fn index(offset: u16) -> Option<usize> {
    match offset & !3 {
        register @ FIRST..END => Some(usize::from((register - FIRST) / 4)),
        ROM => Some(ROM_INDEX),
        _ => None,
    }
}

/// The low and the high half.
fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "halves are what is wanted")]
    [value as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests;
