//! Memory, by virtual addresses as a vCPU translates them, or by physical ones. Only RAM: devices would
//! notice.

use arch::debug::{self, DebuggedCpu, Register, read64};
use arch::translation::Translation;
use gdbstub::target::{TargetError, TargetResult};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{Guest, errno};

/// The smallest page, in bytes: translations of one address are good for all of it.
const PAGE: u64 = 4096;

/// Upper half of the virtual addresses, which all vCPUs have in common where the guest is an operating system.
const UPPER: u64 = 1 << 55;

impl Guest {
    /// The physical address of one that vCPU `index` uses. At EL0 a kernel may have most of its own half
    /// unmapped: then as another one translates it.
    pub(super) fn gpa(&self, index: usize, address: u64) -> Option<u64> {
        if self.is_physical {
            return Some(address);
        }
        let own = self.cpus.get(index).and_then(|cpu| self.translate(cpu.as_ref(), address));
        let is_common = address & UPPER != 0;
        let others = || self.cpus.iter().find_map(|cpu| self.translate(cpu.as_ref(), address));
        own.or_else(|| is_common.then(others).flatten())
    }

    pub(super) fn translate(&self, cpu: &dyn DebuggedCpu, address: u64) -> Option<u64> {
        let translation = Translation {
            sctlr: read64(cpu, Register::SCTLR_EL1).ok()?,
            tcr: read64(cpu, Register::TCR_EL1).ok()?,
            ttbr0: read64(cpu, Register::TTBR0_EL1).ok()?,
            ttbr1: read64(cpu, Register::TTBR1_EL1).ok()?,
        };
        let read = |gpa| self.memory.read_obj(GuestAddress(gpa)).ok().map(u64::from_le);
        translation.gpa(address, read)
    }

    /// The instruction at a virtual address.
    pub(super) fn instruction(&self, index: usize, address: u64) -> Option<u32> {
        let gpa = self.translate(self.cpus.get(index)?.as_ref(), address)?;
        let mut bytes = [0; 4];
        self.memory.read_slice(&mut bytes, GuestAddress(gpa)).ok()?;
        self.points.hide(gpa, &mut bytes);
        Some(u32::from_le_bytes(bytes))
    }

    /// Reads as much as there is, without breakpoints.
    pub(super) fn read_memory(
        &self,
        index: usize,
        address: u64,
        data: &mut [u8],
    ) -> TargetResult<usize, Self> {
        self.stopped(index)?;
        let mut done = 0_usize;
        for (at, size) in pieces(address, data.len()) {
            let Some(piece) = data.get_mut(done..done.saturating_add(size)) else { break };
            let Some(gpa) = self.gpa(index, at) else { break };
            if self.memory.read_slice(piece, GuestAddress(gpa)).is_err() {
                break;
            }
            self.points.hide(gpa, piece);
            done = done.saturating_add(size);
        }
        if done == 0 && !data.is_empty() {
            return Err(TargetError::Errno(errno::EFAULT));
        }
        Ok(done)
    }

    /// Writes, beneath breakpoints.
    pub(super) fn write_memory(
        &mut self,
        index: usize,
        address: u64,
        data: &[u8],
    ) -> TargetResult<(), Self> {
        self.stopped(index)?;
        let mut rest = data;
        for (at, size) in pieces(address, data.len()) {
            let Some((piece, behind)) = rest.split_at_checked(size) else { break };
            let Some(gpa) = self.gpa(index, at) else {
                return Err(TargetError::Errno(errno::EFAULT));
            };
            let mut piece = piece.to_vec();
            self.points.keep(gpa, &mut piece);
            put(&self.memory, gpa, &piece).ok_or(TargetError::Errno(errno::EFAULT))?;
            rest = behind;
        }
        Ok(())
    }
}

/// Writes to RAM what vCPUs may fetch.
pub(super) fn put(memory: &GuestMemoryMmap, gpa: u64, bytes: &[u8]) -> Option<()> {
    memory.write_slice(bytes, GuestAddress(gpa)).ok()?;
    let written = memory.get_slice(GuestAddress(gpa), bytes.len()).ok()?;
    debug::synchronize(&written);
    Some(())
}

/// The parts of so many bytes from an address on that are in one page each: address and size.
fn pieces(address: u64, length: usize) -> impl Iterator<Item = (u64, usize)> {
    let mut left = u64::try_from(length).unwrap_or_default();
    let mut next = Some(address);
    std::iter::from_fn(move || {
        let at = next.filter(|_| left > 0)?;
        let size = left.min(PAGE - at % PAGE);
        (left, next) = (left - size, at.checked_add(size));
        Some((at, usize::try_from(size).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_accessed_page_by_page() {
        let pieces = |address, length| pieces(address, length).collect::<Vec<_>>();
        assert_eq!(pieces(0x1ffe, 0x1004), [(0x1ffe, 2), (0x2000, 0x1000), (0x3000, 2)]);
        assert_eq!(pieces(0x1000, 0x1000), [(0x1000, 0x1000)]);
        assert_eq!(pieces(0x1000, 0), []);
        assert_eq!(pieces(u64::MAX - 1, 8), [(u64::MAX - 1, 2)]);
    }
}
