//! The guest as gdbstub has it.

mod description;
mod memory;
mod points;
mod query;
mod registers;
mod resume;

use std::io;
use std::sync::Arc;

use arch::debug::{DebuggedCpu, MaskedStep};
use gdbstub::common::Tid;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResumeOps};
use gdbstub::target::ext::base::single_register_access::SingleRegisterAccessOps;
use gdbstub::target::ext::breakpoints::BreakpointsOps;
use gdbstub::target::ext::monitor_cmd::MonitorCmdOps;
use gdbstub::target::ext::target_description_xml_override::TargetDescriptionXmlOverrideOps;
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use vm_memory::GuestMemoryMmap;

use self::points::Points;
use self::registers::{Aarch64, CoreRegisters};
use self::resume::Actions;
use super::gate::Gate;

pub use self::query::Topic;

/// What `monitor info` asks strait for.
pub type Info = Box<dyn Fn(Topic) -> String + Send>;

/// What is answered where vCPUs have to be stopped first, or memory can't be reached, or a number is none
/// (asm-generic/errno-base.h).
mod errno {
    pub(super) const EIO: u8 = 5;
    pub(super) const EFAULT: u8 = 14;
    pub(super) const EBUSY: u8 = 16;
    pub(super) const EINVAL: u8 = 22;
    pub(super) const ENOSPC: u8 = 28;
}

/// The vCPUs, as threads 1 and up, and their memory.
pub struct Guest {
    cpus: Vec<Box<dyn DebuggedCpu>>,
    memory: GuestMemoryMmap,
    gate: Arc<Gate>,
    info: Info,
    description: String,
    actions: Actions,
    /// Of the vCPUs that step.
    steps: Vec<Option<MaskedStep>>,
    /// How often the guest was reset before they began.
    resets: u64,
    points: Points,
    /// Addresses are physical.
    is_physical: bool,
    is_running: bool,
}

impl Guest {
    /// The guest of these vCPUs with this RAM, which come to `gate`.
    pub fn new(
        cpus: Vec<Box<dyn DebuggedCpu>>,
        memory: GuestMemoryMmap,
        gate: Arc<Gate>,
        info: Info,
    ) -> Self {
        let steps = cpus.iter().map(|_| None).collect();
        let actions = Actions::new(cpus.len());
        let description = description::description();
        let (resets, points, is_physical) = Default::default();
        let is_running = true;
        Self {
            cpus,
            memory,
            gate,
            info,
            description,
            actions,
            steps,
            resets,
            points,
            is_physical,
            is_running,
        }
    }

    /// Where its vCPUs come to.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Its RAM.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The index of a thread's vCPU.
    fn index(&self, thread: Tid) -> TargetResult<usize, Self> {
        let index = thread.get().saturating_sub(1);
        if index < self.cpus.len() { Ok(index) } else { Err(TargetError::Errno(errno::EINVAL)) }
    }

    /// A vCPU that is stopped.
    fn stopped(&self, index: usize) -> TargetResult<&dyn DebuggedCpu, Self> {
        match self.cpus.get(index) {
            Some(cpu) if !self.is_running => Ok(cpu.as_ref()),
            Some(_) => Err(TargetError::Errno(errno::EBUSY)),
            None => Err(TargetError::Errno(errno::EINVAL)),
        }
    }
}

/// The thread of a vCPU.
fn thread(index: usize) -> Tid {
    Tid::MIN.saturating_add(index)
}

/// What is answered where the host refuses something.
fn refused(e: &io::Error) -> TargetError<io::Error> {
    let number = e.raw_os_error().and_then(|number| u8::try_from(number).ok());
    TargetError::Errno(number.filter(|number| *number != 0).unwrap_or(errno::EIO))
}

impl Target for Guest {
    type Arch = Aarch64;
    type Error = io::Error;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn use_resume_stub(&self) -> bool {
        false
    }

    fn use_lldb_register_info(&self) -> bool {
        false
    }

    fn use_fork_stop_reason(&self) -> bool {
        false
    }

    fn use_vfork_stop_reason(&self) -> bool {
        false
    }

    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }

    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(
        &mut self,
        registers: &mut CoreRegisters,
        thread: Tid,
    ) -> TargetResult<(), Self> {
        registers.read(self.stopped(self.index(thread)?)?).map_err(|e| refused(&e))
    }

    fn write_registers(
        &mut self,
        registers: &CoreRegisters,
        thread: Tid,
    ) -> TargetResult<(), Self> {
        registers.write(self.stopped(self.index(thread)?)?).map_err(|e| refused(&e))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(
        &mut self,
        address: u64,
        data: &mut [u8],
        thread: Tid,
    ) -> TargetResult<usize, Self> {
        self.read_memory(self.index(thread)?, address, data)
    }

    fn write_addrs(&mut self, address: u64, data: &[u8], thread: Tid) -> TargetResult<(), Self> {
        self.write_memory(self.index(thread)?, address, data)
    }

    fn list_active_threads(&mut self, register: &mut dyn FnMut(Tid)) -> io::Result<()> {
        (0..self.cpus.len()).for_each(|index| register(thread(index)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, thread: Tid, buffer: &mut [u8]) -> io::Result<usize> {
        let name = format!("vCPU {}", thread.get().saturating_sub(1));
        let count = name.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Ok(count)
    }
}

/// Copies a part of `all` into `buffer`: of at most `length` bytes, from `offset` on.
fn copy_part(all: &[u8], offset: u64, length: usize, buffer: &mut [u8]) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|offset| all.get(offset..));
    let part = rest.unwrap_or_default().iter().take(length);
    part.zip(buffer).map(|(from, to)| *to = *from).count()
}
