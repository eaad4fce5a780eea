//! What devices need of the hypervisor, over KVM.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use arch::gic::Gic;
use arch::{GsiRoutes, Msi, Target, Vm};
use devices::bus::{IoEvents, MemorySlots};
use devices::gicv2m::Frame;
use devices::irq::{EdgeInterrupts, Gsi, InterruptController, IrqLine, MsiMessage, MsiRouter, Spi};
use devices::ratelimit::LogLimit;
use vmm_sys_util::eventfd::EventFd;

/// A VM as devices see it, also while it runs.
pub struct Irqfds {
    vm: Arc<Vm>,
    routes: GsiRoutes,
    /// What takes messages; the ITS if there is none.
    frame: Option<Frame>,
    log: LogLimit,
}

impl Irqfds {
    /// The irqfds of a VM with this interrupt controller and GICv2m frame: one for all of its devices.
    pub fn new(vm: Arc<Vm>, gic: &Gic, frame: Option<Frame>) -> Self {
        let messages = frame.as_ref().map_or(0..0, Frame::spis);
        let routes = GsiRoutes::new(vm.clone(), gic.spis(), messages);
        Self { vm, routes, frame, log: LogLimit::new("KVM") }
    }

    /// What a message is to the guest's interrupt controller. KVM drops one that is to no ITS; SPIs
    /// that aren't the frame's it would signal, so those are refused here.
    fn target(&self, message: MsiMessage) -> io::Result<Target> {
        let MsiMessage { address, data, requester } = message;
        let Some(frame) = &self.frame else {
            return Ok(Target::Its(Msi { address, data, device_id: requester }));
        };
        let spi = frame.spi(message).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        Ok(Target::Spi(spi.0))
    }
}

impl InterruptController for Irqfds {
    fn connect_edge(&self, spi: Spi, trigger: &EventFd) -> io::Result<()> {
        self.vm.register_irqfd(spi.0, trigger)
    }

    fn connect_level(&self, spi: Spi, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        self.vm.register_resample_irqfd(spi.0, trigger, resample)
    }

    fn disconnect(&self, spi: Spi, trigger: &EventFd) -> io::Result<()> {
        self.vm.unregister_irqfd(spi.0, trigger)
    }
}

impl MsiRouter for Irqfds {
    fn connect(&self, trigger: &EventFd, message: MsiMessage) -> io::Result<Gsi> {
        self.routes.connect(trigger, self.target(message)?).map(Gsi)
    }

    fn redirect(&self, route: Gsi, message: MsiMessage) -> io::Result<()> {
        self.routes.redirect(route.0, self.target(message)?)
    }

    fn disconnect(&self, route: Gsi, trigger: &EventFd) {
        if let Err(error) = self.routes.disconnect(route.0, trigger) {
            let route = route.0;
            self.log.error(format_args!("interrupt route {route} can't be disconnected: {error}"));
        }
    }
}

impl EdgeInterrupts for Irqfds {
    fn pulse(&self, spi: Spi) {
        let pulsed =
            self.vm.set_irq_line(spi.0, true).and_then(|()| self.vm.set_irq_line(spi.0, false));
        if let Err(error) = pulsed {
            self.log.error(format_args!("SPI {} can't be signalled: {error}", spi.0));
        }
    }
}

impl MemorySlots for Irqfds {
    unsafe fn map(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees what `Vm::map_memory` asks for.
        unsafe { self.vm.map_memory(gpa, host, size) }
    }

    unsafe fn map_read_only(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.vm.map_read_only(gpa, host, size) }
    }

    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
        self.vm.unmap_memory(gpa, size)
    }
}

impl IoEvents for Irqfds {
    fn add(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        self.vm.register_ioeventfd(gpa, event)
    }

    fn remove(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        self.vm.unregister_ioeventfd(gpa, event)
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
