//! Registers as GDB numbers them: those of its features `org.gnu.gdb.aarch64.core` and `.fpu`, and system
//! registers by their encodings.
//!
//! Not those of gdbstub_arch, which has FPCR and FPSR in the other order than GDB, and of 64 bits.

use std::io;
use std::num::NonZeroUsize;

use arch::debug::{DebuggedCpu, Register};
use gdbstub::arch::{Arch, RegId, Registers};
use gdbstub::common::Tid;
use gdbstub::target::TargetResult;
use gdbstub::target::ext::base::single_register_access::SingleRegisterAccess;

use super::{Guest, refused};

/// 64-bit Arm.
pub enum Aarch64 {}

impl Arch for Aarch64 {
    type Usize = u64;
    type Registers = CoreRegisters;
    type BreakpointKind = usize;
    type RegId = Numbered;
}

/// The number of registers that a `g` packet has: X0 to X30, SP, PC, CPSR, V0 to V31, FPSR, FPCR.
const CORE: usize = 68;

/// The number of the program counter.
const PC: usize = 32;

/// The first and the last system register: op0 is 2 or 3.
const SYSTEM: std::ops::RangeInclusive<usize> = 0x8000..=0xffff;

/// A register by GDB's number.
#[derive(Clone, Copy, Debug)]
pub struct Numbered(Register);

/// The register with this number, and its size in bytes.
fn numbered(number: usize) -> Option<(Register, usize)> {
    let index = |first: usize| u8::try_from(number.saturating_sub(first)).unwrap_or_default();
    Some(match number {
        0..=30 => (Register::X(index(0)), 8),
        31 => (Register::Sp, 8),
        PC => (Register::Pc, 8),
        33 => (Register::Pstate, 4),
        34..=65 => (Register::V(index(34)), 16),
        66 => (Register::Fpsr, 4),
        67 => (Register::Fpcr, 4),
        _ if SYSTEM.contains(&number) => (Register::System(u16::try_from(number).ok()?), 8),
        _ => return None,
    })
}

impl RegId for Numbered {
    fn from_raw_id(number: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        numbered(number).map(|(register, size)| (Self(register), NonZeroUsize::new(size)))
    }
}

/// The registers of a `g` packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreRegisters(Vec<u128>);

impl Default for CoreRegisters {
    fn default() -> Self {
        Self(vec![0; CORE])
    }
}

impl CoreRegisters {
    /// Those of a vCPU.
    pub(super) fn read(&mut self, cpu: &dyn DebuggedCpu) -> io::Result<()> {
        for (number, value) in self.0.iter_mut().enumerate() {
            let Some((register, _)) = numbered(number) else { continue };
            *value = cpu.read(register)?;
        }
        Ok(())
    }

    /// Sets those of a vCPU.
    pub(super) fn write(&self, cpu: &dyn DebuggedCpu) -> io::Result<()> {
        // PSTATE says which stack pointer is meant.
        cpu.write(Register::Pstate, self.0.get(33).copied().unwrap_or_default())?;
        for (number, value) in self.0.iter().enumerate() {
            let Some((register, _)) = numbered(number) else { continue };
            cpu.write(register, *value)?;
        }
        Ok(())
    }
}

impl Registers for CoreRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.0.get(PC).and_then(|pc| u64::try_from(*pc).ok()).unwrap_or_default()
    }

    fn gdb_serialize(&self, mut write: impl FnMut(Option<u8>)) {
        for (number, value) in self.0.iter().enumerate() {
            let size = numbered(number).map_or(0, |(_, size)| size);
            value.to_le_bytes().into_iter().take(size).for_each(|byte| write(Some(byte)));
        }
    }

    fn gdb_deserialize(&mut self, mut bytes: &[u8]) -> Result<(), ()> {
        for (number, value) in self.0.iter_mut().enumerate() {
            let size = numbered(number).map_or(0, |(_, size)| size);
            let (own, rest) = bytes.split_at_checked(size).ok_or(())?;
            (*value, bytes) = (number_of(own).ok_or(())?, rest);
        }
        Ok(())
    }
}

/// The number that these bytes are, of which there are at most 16.
fn number_of(bytes: &[u8]) -> Option<u128> {
    let mut all = [0; 16];
    all.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u128::from_le_bytes(all))
}

impl SingleRegisterAccess<Tid> for Guest {
    fn read_register(
        &mut self,
        thread: Tid,
        Numbered(register): Numbered,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let cpu = self.stopped(self.index(thread)?)?;
        // One that this vCPU doesn't have is told as such.
        let Ok(value) = cpu.read(register) else { return Ok(0) };
        let bytes = value.to_le_bytes();
        Ok(buffer.iter_mut().zip(bytes).map(|(to, from)| *to = from).count())
    }

    fn write_register(
        &mut self,
        thread: Tid,
        Numbered(register): Numbered,
        value: &[u8],
    ) -> TargetResult<(), Self> {
        let cpu = self.stopped(self.index(thread)?)?;
        let value = number_of(value).ok_or(())?;
        cpu.write(register, value).map_err(|e| refused(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_g_packet_has_each_register_in_its_size() {
        let mut registers = CoreRegisters::default();
        for (number, value) in registers.0.iter_mut().enumerate() {
            *value = number as u128 | u128::from(number == 40) << 127;
        }
        let mut bytes = Vec::new();
        registers.gdb_serialize(|byte| bytes.push(byte.unwrap()));
        assert_eq!(bytes.len(), 33 * 8 + 4 + 32 * 16 + 2 * 4);
        assert_eq!((bytes[32 * 8], bytes[33 * 8], bytes[33 * 8 + 4]), (32, 33, 34));
        assert_eq!(bytes[bytes.len() - 8..], [66, 0, 0, 0, 67, 0, 0, 0]);
        let mut read = CoreRegisters::default();
        read.gdb_deserialize(&bytes).unwrap();
        assert_eq!((&read, read.pc()), (&registers, 32));
        assert!(read.gdb_deserialize(&bytes[1..]).is_err());
    }

    #[test]
    fn numbers_beyond_are_none() {
        for (number, size) in [(0, Some(8)), (33, Some(4)), (65, Some(16)), (68, None)] {
            assert_eq!(numbered(number).map(|(_, size)| size), size, "{number}");
        }
        assert_eq!(numbered(0x7fff), None);
        assert_eq!(numbered(0xc080), Some((Register::SCTLR_EL1, 8)));
        assert_eq!(numbered(0x1_0000), None);
    }
}
