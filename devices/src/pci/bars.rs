//! Base address registers: where a guest has a function's registers decode
//! (PCI Local Bus 3.0, 6.2.5).

use std::ops::Range;

use serde::Serialize;

use super::config::{
    BASE_ADDRESS_0, COMMAND_IO, COMMAND_MEMORY, ROM_ADDRESS, change, halves, merge, read,
};

/// The number of the expansion ROM's register, after those of the six BARs: as VFIO numbers its
/// regions.
pub const ROM: u8 = 6;

/// Flags in a register's low bits (6.2.5.1): decodes I/O ports; the type of a memory BAR; decodes 64
/// bits; prefetchable.
const IO: u32 = 1;
const TYPE: u32 = 0b110;
const TYPE_64: u32 = 0b100;
const PREFETCHABLE: u32 = 0b1000;
/// The ROM's decoding is enabled, if the command register's is.
const ROM_ENABLE: u32 = 1;

/// The sizes that a ROM's register can express, in bytes: bits 31 to 11 are the address (6.2.5.2).
const ROM_SIZES: std::ops::RangeInclusive<u64> = 1 << 11..=1 << 31;

/// An address space of PCI (6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressSpace {
    /// Memory, 32-bit or 64-bit; a bus address is a GPA.
    Memory,
    /// I/O ports.
    Io,
}

/// The addresses that a base address register decodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// Which register: 0 to 5, or [`ROM`].
    pub bar: u8,
    /// Of which address space.
    pub space: AddressSpace,
    /// The bus addresses: of memory, GPAs.
    pub range: Range<u64>,
}

/// The kind and size of a base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Bar {
    /// Memory.
    Memory {
        /// In bytes.
        size: u64,
        /// It has 64 address bits, and takes up two registers.
        is_64: bool,
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// I/O ports.
    Io {
        /// In bytes.
        size: u64,
    },
}

/// Base address registers that no function can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// Its size isn't one that a register can express.
    #[error("BAR {bar} can't be {size:#x} bytes")]
    Size {
        /// Which: 0 to 5, or [`ROM`].
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
/// A guest finds sizes as the specification has it (6.2.5.1): all ones are written, and the bits
/// below the size read as zero. Addresses are zero and decoding is disabled at first, as after a
/// reset.
#[derive(Debug)]
pub struct Bars {
    bars: [Option<Bar>; 6],
    rom: Option<u64>,
    registers: [Register; 7],
    command: u16,
}

impl Bars {
    /// Registers of these kinds; behind a 64-bit one is `None`. `rom` is the expansion ROM's size in
    /// bytes.
    ///
    /// # Errors
    ///
    /// No function has such registers.
    #[cold]
    pub fn new(bars: [Option<Bar>; 6], rom: Option<u64>) -> Result<Self, BarError> {
        let mut registers = [Register::default(); 7];
        for (number, (index, bar)) in (0..ROM).zip(bars.into_iter().enumerate()) {
            let Some(bar) = bar else { continue };
            let (flags, reserved, limit) = bar.shape();
            let size = bar.size();
            if !size.is_power_of_two() || size <= u64::from(reserved) || size > limit {
                return Err(BarError::Size { bar: number, size });
            }
            let [low, high] = halves(!(size - 1));
            if let Some(register) = registers.get_mut(index) {
                *register = Register { value: flags, writable: low & !reserved };
            }
            if bar.is_64() {
                let free = bars.get(index + 1).is_some_and(Option::is_none);
                let upper = registers.get_mut(index + 1).filter(|_| free);
                let upper = upper.ok_or(BarError::NoUpperHalf(number))?;
                *upper = Register { value: 0, writable: high };
            }
        }
        if let Some(size) = rom {
            if !size.is_power_of_two() || !ROM_SIZES.contains(&size) {
                return Err(BarError::Size { bar: ROM, size });
            }
            let [low, _] = halves(!(size - 1));
            let [.., register] = &mut registers;
            *register = Register { value: 0, writable: low | ROM_ENABLE };
        }
        Ok(Self { bars, rom, registers, command: 0 })
    }

    /// Whether the dword of configuration space in which `offset` lies is one of these registers.
    pub fn covers(offset: u16) -> bool {
        index(offset).is_some()
    }

    /// The kind of a BAR, 0 to 5, or of the [`ROM`].
    pub fn kind(&self, number: u8) -> Option<Bar> {
        if number == ROM {
            return self.rom.map(|size| Bar::Memory { size, is_64: false, prefetchable: false });
        }
        self.bars.get(usize::from(number)).copied().flatten()
    }

    /// Reads within one of these registers, at `offset` of configuration space; zero elsewhere.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let value = index(offset).and_then(|index| self.registers.get(index));
        let bytes = value.map_or(0, |register| register.value).to_le_bytes();
        read(&bytes, u64::from(offset % 4), data);
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
        self.command = command;
    }

    /// As a reset does: all addresses zero, no decoding.
    pub fn reset(&mut self) {
        self.command = 0;
        for Register { value, writable } in &mut self.registers {
            *value &= !*writable;
        }
    }

    /// The ranges that are decoded at present.
    pub fn decoded(&self) -> Vec<BarRange> {
        self.ranges().collect()
    }

    /// Whether this range is decoded at present.
    pub fn decodes(&self, range: &BarRange) -> bool {
        self.ranges().any(|decoded| decoded == *range)
    }

    fn ranges(&self) -> impl Iterator<Item = BarRange> {
        let bars = (0..ROM).zip(self.bars).filter_map(|(bar, kind)| {
            let (space, size, bit) = match kind? {
                Bar::Memory { size, .. } => (AddressSpace::Memory, size, COMMAND_MEMORY),
                Bar::Io { size } => (AddressSpace::Io, size, COMMAND_IO),
            };
            let start = self.address(usize::from(bar));
            let end = start.checked_add(size).filter(|_| self.command & bit != 0)?;
            Some(BarRange { bar, space, range: start..end })
        });
        bars.chain(self.rom_range())
    }

    fn rom_range(&self) -> Option<BarRange> {
        let [.., Register { value, writable }] = self.registers;
        let enabled = value & ROM_ENABLE != 0 && self.command & COMMAND_MEMORY != 0;
        let size = self.rom.filter(|_| enabled)?;
        let start = u64::from(value & writable & !ROM_ENABLE);
        Some(BarRange { bar: ROM, space: AddressSpace::Memory, range: start..start + size })
    }

    /// The address in a register, and the next if it has 64 bits.
    fn address(&self, index: usize) -> u64 {
        let bits = |index| {
            let register: Option<&Register> = self.registers.get(index);
            register.map_or(0, |register| u64::from(register.value & register.writable))
        };
        match self.bars.get(index) {
            Some(Some(bar)) if bar.is_64() => bits(index + 1) << 32 | bits(index),
            _ => bits(index),
        }
    }
}

impl Bar {
    /// The register of `size` bytes that has these flags in its low bits.
    pub fn from_register(flags: u32, size: u64) -> Self {
        if flags & IO != 0 {
            return Self::Io { size };
        }
        let (is_64, prefetchable) = (flags & TYPE == TYPE_64, flags & PREFETCHABLE != 0);
        Self::Memory { size, is_64, prefetchable }
    }

    /// Its size in bytes.
    pub fn size(self) -> u64 {
        match self {
            Self::Memory { size, .. } | Self::Io { size } => size,
        }
    }

    /// Whether it takes up two registers.
    pub fn is_64(self) -> bool {
        matches!(self, Self::Memory { is_64: true, .. })
    }

    /// Its flags, the low bits that aren't address, and the largest size in bytes.
    fn shape(self) -> (u32, u32, u64) {
        match self {
            Self::Memory { is_64, prefetchable, .. } => {
                let kind = if is_64 { TYPE_64 } else { 0 };
                let prefetchable = if prefetchable { PREFETCHABLE } else { 0 };
                (kind | prefetchable, 0xf, if is_64 { 1 << 63 } else { 1 << 31 })
            }
            // The guest's I/O window has 64 KiB.
            Self::Io { .. } => (IO, 0b11, 1 << 16),
        }
    }
}

/// The size in bytes of a ROM's register for a ROM of `size` bytes, if one can express it.
pub fn rom_size(size: u64) -> Option<u64> {
    let size = size.checked_next_power_of_two()?.max(*ROM_SIZES.start());
    Some(size).filter(|size| ROM_SIZES.contains(size))
}

/// The number of the register in which `offset` lies.
fn index(offset: u16) -> Option<usize> {
    const END: u16 = BASE_ADDRESS_0 + 4 * ROM as u16;
    match offset & !3 {
        register @ BASE_ADDRESS_0..END => Some(usize::from((register - BASE_ADDRESS_0) / 4)),
        ROM_ADDRESS => Some(usize::from(ROM)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
