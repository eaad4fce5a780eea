//! A function that can be taken back while its guest runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vfio_bindings::bindings::vfio::{VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::error_chain::chain;
use super::super::uapi::IrqAction;
use super::function::PciFunction;
use crate::pci::{BarRange, Function};

/// Why a function is taken back (`vfio_pci_core_request` and `vfio_pci_core_aer_err_detected` of Linux'
/// drivers/vfio/pci/vfio_pci_core.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The host wants it back: its driver is being unbound, or it is being removed. The host waits.
    Requested,
    /// It, or the way to it, has failed: an error of PCI Express that the host can't correct.
    Failed,
}

/// What a guest has in a slot: a function, or what is left when it was taken back, which reads as all ones,
/// as a slot without a function does (PCI Local Bus 3.0, 6.1).
pub struct RemovableFunction {
    name: String,
    /// Dropped, and its file closed, when it is taken back.
    function: Option<PciFunction>,
    /// The function is about to be taken back.
    leaving: Arc<AtomicBool>,
    /// One that was taken back, and is still mapped into the guest, for the hypervisor has refused to unmap
    /// it: it is kept for as long as the guest can run.
    stuck: Option<PciFunction>,
}

impl From<PciFunction> for RemovableFunction {
    fn from(function: PciFunction) -> Self {
        let (name, leaving) = (function.name().to_owned(), Arc::default());
        Self { name, function: Some(function), leaving, stuck: None }
    }
}

impl RemovableFunction {
    /// The function, if it wasn't taken back.
    pub fn get(&self) -> Option<&PciFunction> {
        self.function.as_ref()
    }

    /// As [`get`](Self::get).
    pub fn get_mut(&mut self) -> Option<&mut PciFunction> {
        self.function.as_mut()
    }

    /// What is set before the function is [removed](Self::remove), without its lock: from then on the guest
    /// changes nothing of it, so that a guest that resets it without end doesn't keep the lock.
    pub fn leaving(&self) -> &Arc<AtomicBool> {
        &self.leaving
    }

    fn changeable(&mut self) -> Option<&mut PciFunction> {
        self.function.as_mut().filter(|_| !self.leaving.load(Ordering::Acquire))
    }

    /// Takes the function back while the guest runs: stops its interrupts and its DMA, unmaps it from the
    /// guest and closes its file. It isn't reset: who waits for it holds the lock that a reset needs. Whether
    /// it is closed.
    pub fn remove(&mut self) -> bool {
        if let Some(mut function) = self.function.take()
            && !function.give_up()
        {
            self.stuck = Some(function);
        }
        self.stuck.is_none()
    }
}

impl Function for RemovableFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        match &mut self.function {
            Some(function) => function.read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if let Some(function) = self.changeable() {
            function.write_config(offset, data);
        }
    }

    fn decoded(&self) -> Vec<BarRange> {
        self.function.as_ref().map(PciFunction::decoded).unwrap_or_default()
    }

    fn decodes(&self, range: &BarRange) -> bool {
        self.function.as_ref().is_some_and(|function| function.decodes(range))
    }

    fn forward(&mut self, ranges: &[BarRange]) {
        if let Some(function) = &mut self.function {
            function.forward(ranges);
        }
    }

    fn trap(&mut self) -> bool {
        self.function.as_mut().is_some_and(PciFunction::trap)
    }

    fn set_bus(&mut self, bus: u8) {
        if let Some(function) = self.changeable() {
            function.set_bus(bus);
        }
    }

    fn reset(&mut self) {
        if let Some(function) = self.changeable() {
            Function::reset(function);
        }
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        match &mut self.function {
            Some(function) => function.read_bar(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if let Some(function) = &mut self.function {
            function.write_bar(bar, offset, data);
        }
    }
}

impl PciFunction {
    /// Has VFIO tell of the function's loss, as far as it can. Each eventfd is signalled anew until the
    /// function's file is closed.
    pub fn watch_loss(&self) -> Vec<(Loss, EventFd)> {
        let kinds =
            [(Loss::Requested, VFIO_PCI_REQ_IRQ_INDEX), (Loss::Failed, VFIO_PCI_ERR_IRQ_INDEX)];
        let watch = |(loss, index)| {
            // A function of the conventional bus has no such errors.
            let _ = self.calls().irq_info(index).ok().filter(|info| info.count != 0)?;
            let event = EventFd::new(EFD_NONBLOCK).map_err(|error| error.to_string());
            let watched = event.and_then(|event| {
                let set = self.calls().set_irq(index, IrqAction::SetTrigger(&event));
                set.map(|()| event).map_err(|error| chain(&error))
            });
            watched
                .map(|event| (loss, event))
                .map_err(|error| self.log_unwatched(loss, &error))
                .ok()
        };
        kinds.into_iter().filter_map(watch).collect()
    }

    #[cold]
    fn log_unwatched(&self, loss: Loss, error: &str) {
        let what = match loss {
            Loss::Requested => "a host that takes it back waits for the guest's end",
            Loss::Failed => "errors of it that the host can't correct go unseen",
        };
        log::warn!("{}: {what}: {error}", self.name());
    }
}
