//! Breakpoints and watchpoints.

use arch::debug::{Access, Watchpoint};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::{TargetError, TargetResult};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::memory::put;
use super::{Guest, errno, refused};

/// BRK #0, as it is in memory (Arm ARM, C6.2.45).
const BRK: [u8; 4] = 0xd420_0000_u32.to_le_bytes();

/// How many breakpoints in memory there may be.
const MAX_SOFTWARE: usize = 4096;

/// What vCPUs stop at.
#[derive(Default)]
pub(super) struct Points {
    software: Vec<Software>,
    /// Virtual addresses.
    pub(super) hardware: Vec<u64>,
    pub(super) watchpoints: Vec<Watchpoint>,
}

/// A BRK instruction in RAM.
struct Software {
    /// Where it is (GPA).
    gpa: u64,
    /// The addresses that the debugger has it by.
    addresses: Vec<u64>,
    /// What is there without it.
    original: [u8; 4],
}

impl Points {
    /// Whether there are any in memory.
    pub(super) fn has_software(&self) -> bool {
        !self.software.is_empty()
    }

    /// Whether there is one in memory at this GPA.
    pub(super) fn is_software(&self, gpa: u64) -> bool {
        self.software.iter().any(|point| point.gpa == gpa)
    }

    /// Puts what is beneath breakpoints into what was read at `gpa`.
    pub(super) fn hide(&self, gpa: u64, bytes: &mut [u8]) {
        for point in &self.software {
            for (at, original) in (point.gpa..).zip(point.original) {
                let index = at.checked_sub(gpa).and_then(|index| usize::try_from(index).ok());
                if let Some(byte) = index.and_then(|index| bytes.get_mut(index)) {
                    *byte = original;
                }
            }
        }
    }

    /// Keeps breakpoints in what is to be written at `gpa`, and that beneath them.
    pub(super) fn keep(&mut self, gpa: u64, bytes: &mut [u8]) {
        for point in &mut self.software {
            for ((at, original), brk) in (point.gpa..).zip(&mut point.original).zip(BRK) {
                let index = at.checked_sub(gpa).and_then(|index| usize::try_from(index).ok());
                if let Some(byte) = index.and_then(|index| bytes.get_mut(index)) {
                    (*original, *byte) = (*byte, brk);
                }
            }
        }
    }

    /// Removes all of them.
    pub(super) fn clear(&mut self, memory: &GuestMemoryMmap) {
        self.software.drain(..).for_each(|point| point.remove(memory));
        self.hardware.clear();
        self.watchpoints.clear();
    }
}

impl Software {
    /// Restores what was there, unless the guest has put something else there.
    fn remove(self, memory: &GuestMemoryMmap) {
        let mut there = [0; 4];
        let read = memory.read_slice(&mut there, GuestAddress(self.gpa));
        if read.is_ok() && there == BRK {
            // It was read there.
            let _ = put(memory, self.gpa, &self.original);
        }
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.stopped(0)?;
        // Those of processes are in the vCPU's address space that has one there.
        let gpa = (0..self.cpus.len()).find_map(|index| self.gpa(index, address));
        let gpa =
            gpa.filter(|gpa| gpa.is_multiple_of(4)).ok_or(TargetError::Errno(errno::EFAULT))?;
        if let Some(there) = self.points.software.iter_mut().find(|point| point.gpa == gpa) {
            if !there.addresses.contains(&address) {
                there.addresses.push(address);
            }
            return Ok(true);
        }
        if self.points.software.len() >= MAX_SOFTWARE {
            return Err(TargetError::Errno(errno::ENOSPC));
        }
        let mut original = [0; 4];
        let read = self.memory.read_slice(&mut original, GuestAddress(gpa)).ok();
        let done = read.and_then(|()| put(&self.memory, gpa, &BRK));
        done.ok_or(TargetError::Errno(errno::EFAULT))?;
        self.points.software.push(Software { gpa, addresses: vec![address], original });
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.stopped(0)?;
        let points = &mut self.points.software;
        let Some(index) = points.iter().position(|point| point.addresses.contains(&address)) else {
            return Ok(false);
        };
        if let Some(point) = points.get_mut(index) {
            point.addresses.retain(|other| *other != address);
            if point.addresses.is_empty() {
                points.swap_remove(index).remove(&self.memory);
            }
        }
        Ok(true)
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.stopped(0)?;
        if !address.is_multiple_of(4) {
            return Ok(false);
        }
        if !self.points.hardware.contains(&address) {
            self.points.hardware.push(address);
            self.check_points().inspect_err(|_| {
                self.points.hardware.pop();
            })?;
        }
        Ok(true)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.stopped(0)?;
        let before = self.points.hardware.len();
        self.points.hardware.retain(|other| *other != address);
        Ok(self.points.hardware.len() < before)
    }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        size: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.stopped(0)?;
        let watchpoint = watchpoint(address, size, kind);
        if watchpoint.registers().is_none() {
            return Ok(false);
        }
        if !self.points.watchpoints.contains(&watchpoint) {
            self.points.watchpoints.push(watchpoint);
            self.check_points().inspect_err(|_| {
                self.points.watchpoints.pop();
            })?;
        }
        Ok(true)
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        size: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.stopped(0)?;
        let before = self.points.watchpoints.len();
        self.points.watchpoints.retain(|other| *other != watchpoint(address, size, kind));
        Ok(self.points.watchpoints.len() < before)
    }
}

impl Guest {
    /// Whether the hardware has as many; the vCPUs run with what is set when they run again.
    fn check_points(&self) -> TargetResult<(), Self> {
        let control = self.control(false);
        self.stopped(0)?.control(&control).map_err(|e| refused(&e))
    }
}

fn watchpoint(address: u64, size: u64, kind: WatchKind) -> Watchpoint {
    let access = match kind {
        WatchKind::Read => Access::Read,
        WatchKind::Write => Access::Write,
        WatchKind::ReadWrite => Access::Any,
    };
    Watchpoint { address, size, access }
}

/// What a debugger calls the kind of these accesses.
pub(super) fn watch_kind(access: Access) -> WatchKind {
    match access {
        Access::Read => WatchKind::Read,
        Access::Write => WatchKind::Write,
        Access::Any => WatchKind::ReadWrite,
    }
}
