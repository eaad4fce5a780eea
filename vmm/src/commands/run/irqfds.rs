//! What devices need of the hypervisor, over KVM.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use arch::gic::Gic;
use arch::{GsiRoutes, Msi, Vm};
use devices::bus::MemorySlots;
use devices::irq::{Gsi, InterruptController, IrqLine, MsiMessage, MsiRouter, Spi};
use devices::ratelimit::LogLimit;
use vmm_sys_util::eventfd::EventFd;

/// A VM as devices see it, also while it runs.
pub struct Irqfds {
    vm: Arc<Vm>,
    routes: GsiRoutes,
    log: LogLimit,
}

impl Irqfds {
    /// The irqfds of a VM with this interrupt controller: one for all of its devices.
    pub fn new(vm: Arc<Vm>, gic: &Gic) -> Self {
        let log = LogLimit::new("KVM");
        Self { routes: GsiRoutes::new(vm.clone(), gic.spis()), vm, log }
    }
}

impl InterruptController for Irqfds {
    fn connect_edge(&self, spi: Spi, trigger: &EventFd) -> io::Result<()> {
        self.vm.register_irqfd(spi.0, trigger)
    }

    fn connect_level(&self, spi: Spi, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        self.vm.register_resample_irqfd(spi.0, trigger, resample)
    }
}

impl MsiRouter for Irqfds {
    fn connect(&self, trigger: &EventFd, message: MsiMessage) -> io::Result<Gsi> {
        self.routes.connect(trigger, msi(message)).map(Gsi)
    }

    fn redirect(&self, route: Gsi, message: MsiMessage) -> io::Result<()> {
        self.routes.redirect(route.0, msi(message))
    }

    fn disconnect(&self, route: Gsi, trigger: &EventFd) {
        if let Err(error) = self.routes.disconnect(route.0, trigger) {
            let route = route.0;
            self.log.error(format_args!("interrupt route {route} can't be disconnected: {error}"));
        }
    }
}

fn msi(MsiMessage { address, data, requester }: MsiMessage) -> Msi {
    Msi { address, data, device_id: requester }
}

impl MemorySlots for Irqfds {
    unsafe fn map(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees what `Vm::map_memory` asks for.
        unsafe { self.vm.map_memory(gpa, host, size) }
    }

    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
        self.vm.unmap_memory(gpa, size)
    }
}

/// The line of a level-triggered SPI.
pub struct SpiLine {
    /// Its VM.
    pub vm: Arc<Vm>,
    /// The SPI.
    pub spi: u32,
}

impl IrqLine for SpiLine {
    fn set(&self, high: bool) {
        if let Err(error) = self.vm.set_irq_line(self.spi, high) {
            log::error!("KVM doesn't take SPI {}: {error}", self.spi);
        }
    }
}
