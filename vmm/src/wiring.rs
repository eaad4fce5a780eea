//! What devices need of the hypervisor, over KVM.

use std::io;
use std::ptr::NonNull;

use arch::Vm;
use devices::irq::{InterruptController, Spi};
use devices::slot::MemorySlots;
use vmm_sys_util::eventfd::EventFd;

/// A VM as devices see it.
pub struct KvmWiring<'a>(pub &'a Vm);

impl InterruptController for KvmWiring<'_> {
    fn connect_edge(&self, spi: Spi, trigger: &EventFd) -> io::Result<()> {
        self.0.connect_edge(spi.0, trigger)
    }

    fn connect_level(&self, spi: Spi, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        self.0.connect_level(spi.0, trigger, resample)
    }
}

impl MemorySlots for KvmWiring<'_> {
    unsafe fn map(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees what `Vm::map` asks for.
        unsafe { self.0.map(gpa, host, size) }
    }

    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
        self.0.unmap(gpa, size)
    }
}
