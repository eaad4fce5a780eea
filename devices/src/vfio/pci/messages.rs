//! Messages in use (MSI or MSI-X): from the device's vectors through VFIO to the guest.
//!
//! # Why none is lost
//!
//! - A vector that the guest has never unmasked has no eventfd with VFIO. The device keeps it masked
//!   by its own registers, and pending where it wants to signal; VFIO's unmasking delivers it.
//! - One that the guest masks again keeps its eventfd, whose count is the pending bit ([`Vectors`]):
//!   VFIO isn't asked to take an eventfd away, which would lose what comes in between.
//! - VFIO is asked for all vectors at once, for most hosts can't add one while others are in use. A
//!   host that has fewer is asked for those up to the highest in use; should that grow, all are
//!   turned off and on again, and each that was in use is signalled once: drivers take an interrupt
//!   for nothing, but none is missing.
//!
//! (Linux: `drivers/vfio/pci/vfio_pci_intrs.c`.)

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::super::uapi::{DeviceCalls, IoctlError, IrqAction};
use crate::irq::MsiRouter;
use crate::pci::{Delivery, Vectors};
use crate::ratelimit::LogLimit;

/// The messages that a function's guest has turned on; off when dropped.
pub struct Messages {
    calls: Arc<dyn DeviceCalls>,
    /// VFIO's index: of MSI or of MSI-X.
    index: u32,
    vectors: Vectors,
    count: u16,
    /// How many VFIO has turned on.
    on: u16,
    /// Those that VFIO signals.
    signalled: BTreeSet<u16>,
    log: Arc<LogLimit>,
}

impl Messages {
    /// So many of VFIO's index, all masked, that go to `router`; what fails unseen goes to `log`.
    pub fn new(
        calls: Arc<dyn DeviceCalls>,
        index: u32,
        router: Arc<dyn MsiRouter>,
        count: u16,
        log: Arc<LogLimit>,
    ) -> Self {
        let vectors = Vectors::new(router, count);
        Self { calls, index, vectors, count, on: 0, signalled: BTreeSet::new(), log }
    }

    /// VFIO's index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How many vectors the device signals.
    pub fn in_use(&self) -> usize {
        self.signalled.len()
    }

    /// Whether a vector was signalled while it was masked.
    pub fn is_pending(&self, vector: u16) -> bool {
        self.vectors.is_pending(vector)
    }

    /// Makes the signals of a vector this from here on; [`settle`](Self::settle) is due then.
    ///
    /// # Errors
    ///
    /// As for [`Vectors::deliver`].
    pub fn deliver(&mut self, vector: u16, delivery: Delivery) -> io::Result<()> {
        self.vectors.deliver(vector, delivery)
    }

    /// Has VFIO turn messages on, and signal each vector that the guest has unmasked once.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn settle(&mut self) -> Result<(), IoctlError> {
        let highest = self.vectors.triggers().map(|(vector, _)| vector).max();
        let wanted = highest.map_or(0, |vector| vector.saturating_add(1));
        if self.on == 0 {
            return match self.turn_on(self.count) {
                Err(error) if !error.is(libc::ENOSPC) || wanted == self.count => Err(error),
                Err(_) if wanted == 0 => Ok(()),
                Err(_) => self.turn_on(wanted),
                Ok(()) => Ok(()),
            };
        }
        if wanted > self.on {
            return self.turn_on(wanted);
        }
        for (vector, trigger) in self.vectors.triggers() {
            if !self.signalled.contains(&vector) {
                self.calls.set_vectors(self.index, vector.into(), &[Some(trigger)])?;
                self.signalled.insert(vector);
            }
        }
        Ok(())
    }

    /// Has VFIO turn on vectors 0 to `count` - 1.
    fn turn_on(&mut self, count: u16) -> Result<(), IoctlError> {
        self.turn_off();
        let mut triggers: Vec<Option<&EventFd>> = vec![None; usize::from(count)];
        for (vector, trigger) in self.vectors.triggers() {
            if let Some(place) = triggers.get_mut(usize::from(vector)) {
                *place = Some(trigger);
            }
        }
        self.calls.set_vectors(self.index, 0, &triggers)?;
        self.on = count;
        for (vector, trigger) in self.vectors.triggers() {
            if !self.signalled.insert(vector) {
                // What was signalled while it was off.
                let _ = trigger.write(1);
            }
        }
        Ok(())
    }

    fn turn_off(&mut self) {
        if std::mem::take(&mut self.on) == 0 {
            return;
        }
        if let Err(error) = self.calls.set_irq(self.index, IrqAction::ClearTrigger) {
            let (index, cause) = (self.index, &error.source);
            self.log.error(format_args!("interrupts {index}: {error}: {cause}"));
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        // Before the vectors, which must not be signalled any more when they go.
        self.turn_off();
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Call, FakeFunction};
    use super::*;
    use crate::irq::MsiMessage;
    use crate::pci::testing::FakeMsiRouter;

    const MSIX: u32 = 2;

    fn log() -> Arc<LogLimit> {
        Arc::new(LogLimit::named("function"))
    }

    fn to(data: u32) -> Delivery {
        Delivery::To(MsiMessage { address: 0x808_0040, data, requester: 8 })
    }

    fn vectors(start: u32, triggers: &[bool]) -> Call {
        Call::SetVectors(MSIX, start, triggers.to_vec())
    }

    #[test]
    fn all_are_turned_on_at_once_and_signalled_when_unmasked() {
        let device = FakeFunction::new(256).calls();
        let router = Arc::new(FakeMsiRouter::new(8));
        let mut messages = Messages::new(device.clone(), MSIX, router.clone(), 4, log());
        messages.settle().unwrap();
        assert_eq!(device.take_calls(), [vectors(0, &[false; 4])]);
        messages.deliver(2, to(7)).unwrap();
        messages.settle().unwrap();
        messages.settle().unwrap();
        assert_eq!(device.take_calls(), [vectors(2, &[true])]);
        // Masked, moved, unmasked: VFIO isn't asked again, and what comes meanwhile is kept.
        messages.deliver(2, Delivery::Masked).unwrap();
        device.signal(MSIX, 2);
        assert!(messages.is_pending(2));
        messages.deliver(2, to(9)).unwrap();
        messages.settle().unwrap();
        assert_eq!(device.take_calls(), []);
        assert_eq!(router.poll().iter().map(|m| m.data).collect::<Vec<_>>(), [9]);
        drop(messages);
        assert_eq!(device.take_calls(), [Call::ClearTrigger(MSIX)]);
        assert_eq!(router.messages(), []);
    }

    #[test]
    fn a_host_with_few_gives_those_in_use_and_none_is_lost_as_they_grow() {
        let device = FakeFunction::new(256).calls();
        device.limit_vectors(3);
        let router = Arc::new(FakeMsiRouter::new(8));
        let mut messages = Messages::new(device.clone(), MSIX, router.clone(), 64, log());
        messages.settle().unwrap();
        device.take_calls();
        messages.deliver(0, to(1)).unwrap();
        messages.settle().unwrap();
        assert_eq!(device.take_calls().last(), Some(&vectors(0, &[true])));
        messages.deliver(2, to(3)).unwrap();
        messages.settle().unwrap();
        let grown = [Call::ClearTrigger(MSIX), vectors(0, &[true, false, true])];
        assert_eq!(device.take_calls(), grown);
        assert_eq!(router.poll().iter().map(|m| m.data).collect::<Vec<_>>(), [1]);
        messages.deliver(5, to(6)).unwrap();
        assert!(messages.settle().unwrap_err().is(libc::ENOSPC));
    }
}
