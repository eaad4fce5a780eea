//! PCI functions that the guest loses while it runs, and goes on: the host takes them back, so that the guest sees
//! them removed by surprise; or the guest ejects them.

use std::os::fd::BorrowedFd;

use devices::vfio::iommu::{Attachments, Iommu};
use devices::vfio::pci::Loss;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use crate::assigned::AssignedDevices;
use crate::functions::{AssignedFunction, Functions};

/// Tells the hypervisor that a file of VFIO isn't in use any more, or why that can't be.
pub type Closing = Box<dyn Fn(BorrowedFd<'_>) -> Result<(), String>>;

/// Why a guest loses a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The host takes it.
    Host(Loss),
    /// The guest has turned off the power of its slot.
    Ejected,
}

/// Watches for the loss of functions of the host, in the event loop.
pub struct FunctionLosses {
    functions: Functions,
    attachments: Option<Attachments>,
    closing: Closing,
    /// The function's index, and what tells of its loss.
    events: Vec<(usize, Cause, EventFd)>,
}

impl FunctionLosses {
    /// Watches the functions among these devices; `closing` is called with the file of one that is taken back.
    /// `None` if VFIO tells of none's loss, and no guest can eject one.
    pub fn watch(assigned: &AssignedDevices, closing: Closing) -> Option<Self> {
        let functions = assigned.functions.clone();
        let of_function = |(index, function): (usize, &AssignedFunction)| {
            let by_host = function.watch_loss().into_iter();
            let by_host = by_host.map(move |(loss, event)| (index, Cause::Host(loss), event));
            by_host.chain(watch_ejection(function).map(|event| (index, Cause::Ejected, event)))
        };
        let events: Vec<_> = functions.iter().enumerate().flat_map(of_function).collect();
        let attachments = assigned.iommu.as_ref().map(Iommu::attachments);
        (!events.is_empty()).then_some(Self { functions, attachments, closing, events })
    }

    /// Takes a function from the guest.
    #[cold]
    fn remove(&self, index: usize, cause: Cause) {
        let Some(function) = self.functions.iter().nth(index) else { return };
        let name = &function.name;
        match cause {
            Cause::Ejected => log::warn!(
                "{name}: the guest has ejected it: strait device unbind {name} gives it back to the host"
            ),
            Cause::Host(Loss::Requested) => log::warn!(
                "{name}: the host takes it back (its driver is unbound, or it is removed): the guest \
                 goes on without it"
            ),
            Cause::Host(Loss::Failed) => log::warn!(
                "{name}: the host can't correct an error of it (PCI Express AER): it is taken from the \
                 guest, which goes on without it; dmesg | grep AER"
            ),
        }
        let removed = function.lock().remove();
        if !removed {
            log::error!(
                "{name}: KVM doesn't unmap its registers, so that the host waits for it until the guest ends"
            );
            return;
        }
        let Some(attachments) = &self.attachments else { return };
        attachments.detach(name, |file| {
            if let Err(error) = (self.closing)(file) {
                log::error!("{name}: {error}");
            }
        });
    }
}

impl MutEventSubscriber for FunctionLosses {
    fn init(&mut self, ops: &mut EventOps) {
        for (number, (.., event)) in (0..).zip(&self.events) {
            if let Err(error) = ops.add(Events::with_data(event, number, EventSet::IN)) {
                log::warn!("the event loop can't watch for the loss of PCI functions: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let number = usize::try_from(events.data()).unwrap_or(usize::MAX);
        let Some((index, cause, event)) = self.events.get(number) else { return };
        // Once: VFIO repeats it until the file is closed.
        if let Err(error) = ops.remove(Events::with_data(event, events.data(), EventSet::IN)) {
            log::warn!("the event loop can't stop watching for a loss: {error}");
        }
        let (index, cause) = (*index, *cause);
        let Some(function) = self.functions.iter().nth(index) else { return };
        function.leave();
        let is_there = function.lock().get().is_some();
        if is_there {
            self.remove(index, cause);
        }
    }
}

/// What tells that the guest ejects a function, if it is in a slot from which it can.
fn watch_ejection(function: &AssignedFunction) -> Option<EventFd> {
    let port = &function.port.as_ref()?.port;
    let event = port.ejected().try_clone();
    let unwatched = |error: &std::io::Error| {
        log::warn!(
            "{}: a guest that ejects it keeps it until the run's end: {error}",
            function.name
        );
    };
    event.inspect_err(unwatched).ok()
}
