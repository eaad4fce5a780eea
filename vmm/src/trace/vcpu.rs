//! Which vCPU the calling thread runs, and where its guest is.

use std::cell::Cell;
use std::os::fd::RawFd;

use super::record::NO_CPU;

/// Reads the program counter of the vCPU with this descriptor.
pub type ProgramCounter = fn(RawFd) -> Option<u64>;

thread_local! {
    static CURRENT: Cell<(u16, RawFd, ProgramCounter)> = const { Cell::new((NO_CPU, -1, |_| None)) };
}

/// The calling thread runs the vCPU with this number and descriptor.
pub fn enter(index: usize, vcpu: RawFd, program_counter: ProgramCounter) {
    let index = u16::try_from(index).unwrap_or(NO_CPU);
    CURRENT.set((index, vcpu, program_counter));
}

/// The number of the vCPU, and where its guest is, if that is asked for.
pub(super) fn current(with_pc: bool) -> (u16, u64) {
    let (index, vcpu, program_counter) = CURRENT.get();
    let pc = if with_pc && index != NO_CPU { program_counter(vcpu) } else { None };
    (index, pc.unwrap_or_default())
}
