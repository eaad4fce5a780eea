//! MSI or MSI-X in use: from the device's vectors through VFIO to the guest.
//!
//! # Why no message is lost
//!
//! - A vector that the guest has never unmasked has no eventfd with VFIO. The device's own registers
//!   keep it masked, and pending if it is signalled; VFIO's unmasking delivers that.
//! - A vector that the guest masks again keeps its eventfd, whose count is the pending bit
//!   ([`MsiVectors`]): removing the eventfd from VFIO would lose signals in between.
//! - All vectors are enabled at once, since most hosts can't add one while others are in use. Where
//!   the host has fewer, those up to the highest in use are enabled; when that grows, all are
//!   disabled and enabled again, and each that was in use is signalled once. Drivers see a spurious
//!   interrupt, but miss none. Where the host has no more, those before are enabled again.
//!
//! (Linux: `drivers/vfio/pci/vfio_pci_intrs.c`.)

use std::collections::BTreeSet;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::super::uapi::{DeviceCalls, IoctlError, IrqAction};
use super::tap::VectorTap;
use crate::pci::MsiVectors;
use crate::ratelimit::LogLimit;

/// MSI or MSI-X of a function, which its guest has enabled; disabled when dropped.
pub struct VfioMsi {
    calls: Arc<dyn DeviceCalls>,
    /// VFIO's index: `VFIO_PCI_MSI_IRQ_INDEX` or `VFIO_PCI_MSIX_IRQ_INDEX`.
    index: u32,
    /// Its vectors; [`sync`](Self::sync) is due when they have changed.
    pub vectors: MsiVectors,
    /// The number of vectors that are enabled with VFIO.
    enabled: u16,
    /// The least number of vectors that the host has refused: it has fewer.
    refused: u16,
    /// The vectors that VFIO has an eventfd of.
    armed: BTreeSet<u16>,
    /// What passes their messages on, if somebody does.
    taps: Option<Arc<[VectorTap]>>,
    log: Arc<LogLimit>,
}

impl VfioMsi {
    /// `vectors` by VFIO's index, whose messages are passed on by `taps` if there are any. Errors that can't be
    /// returned go to `log`.
    pub fn new(
        calls: Arc<dyn DeviceCalls>,
        index: u32,
        vectors: MsiVectors,
        taps: Option<Arc<[VectorTap]>>,
        log: Arc<LogLimit>,
    ) -> Self {
        Self {
            calls,
            index,
            vectors,
            enabled: 0,
            refused: u16::MAX,
            armed: BTreeSet::new(),
            taps,
            log,
        }
    }

    /// VFIO's index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The number of vectors that the device signals.
    pub fn in_use(&self) -> usize {
        self.armed.len()
    }

    /// Has VFIO enable the interrupt, and signal each vector that the guest has unmasked once.
    ///
    /// # Errors
    ///
    /// VFIO's refusal.
    pub fn sync(&mut self) -> Result<(), IoctlError> {
        let all = self.vectors.count();
        if self.enabled == 0 && all < self.refused {
            match self.enable(all) {
                Err(error) if error.is(libc::ENOSPC) => self.refused = all,
                result => return result,
            }
        }
        let grown = self.grow();
        for (vector, trigger) in self.vectors.triggers() {
            if vector < self.enabled && !self.armed.contains(&vector) {
                let signalled = signalled(self.taps.as_deref(), vector, trigger, &self.log);
                self.calls.set_vectors(self.index, vector.into(), &[Some(signalled)])?;
                self.armed.insert(vector);
            }
        }
        grown
    }

    /// Has VFIO enable as many of the vectors in use as the host has, and no fewer than were enabled. What
    /// the host has refused is not asked for again.
    fn grow(&mut self) -> Result<(), IoctlError> {
        let (mut has, mut result) = (self.enabled, Ok(()));
        loop {
            let wanted = self.vectors.triggers().map(|(vector, _)| vector.saturating_add(1));
            let wanted =
                wanted.filter(|count| (has.saturating_add(1)..self.refused).contains(count));
            let wanted: BTreeSet<u16> = wanted.collect();
            // All of them; where the host hasn't so many, by halves.
            let next = match &result {
                Ok(()) => wanted.last(),
                Err(_) => wanted.iter().nth(wanted.len() / 2),
            };
            let Some(count) = next.copied() else { break };
            match self.enable(count) {
                Ok(()) => has = count,
                Err(error) => {
                    let is_short = error.is(libc::ENOSPC);
                    result = Err(error);
                    if !is_short {
                        break;
                    }
                    self.refused = count;
                }
            }
        }
        if self.enabled < has {
            self.enable(has)?;
        }
        result
    }

    /// Has VFIO enable vectors 0 to `count` - 1, and signal those of them that the guest has unmasked once.
    /// None is enabled if that fails.
    fn enable(&mut self, count: u16) -> Result<(), IoctlError> {
        self.disable();
        let mut triggers: Vec<Option<&EventFd>> = vec![None; usize::from(count)];
        for (vector, trigger) in self.vectors.triggers() {
            if let Some(place) = triggers.get_mut(usize::from(vector)) {
                *place = Some(signalled(self.taps.as_deref(), vector, trigger, &self.log));
            }
        }
        self.calls.set_vectors(self.index, 0, &triggers)?;
        self.enabled = count;
        for (vector, trigger) in self.vectors.triggers().filter(|(vector, _)| *vector < count) {
            if !self.armed.insert(vector) {
                // A signal while it was disabled would be lost.
                let tap = tap_of(self.taps.as_deref(), vector);
                let _ = tap.map_or(trigger, VectorTap::polled).write(1);
            }
        }
        Ok(())
    }

    fn disable(&mut self) {
        if std::mem::take(&mut self.enabled) == 0 {
            return;
        }
        if let Err(error) = self.calls.set_irq(self.index, IrqAction::ClearTrigger) {
            let (index, cause) = (self.index, &error.source);
            self.log.error(format_args!("interrupts {index}: {error}: {cause}"));
        }
    }
}

impl Drop for VfioMsi {
    fn drop(&mut self) {
        // Before the vectors' eventfds are closed.
        self.disable();
        self.taps.iter().flat_map(|taps| &**taps).for_each(VectorTap::disconnect);
    }
}

fn tap_of(taps: Option<&[VectorTap]>, vector: u16) -> Option<&VectorTap> {
    taps?.get(usize::from(vector))
}

/// What VFIO is to signal for a vector: its own eventfd, unless somebody passes its messages on.
fn signalled<'a>(
    taps: Option<&'a [VectorTap]>,
    vector: u16,
    trigger: &'a EventFd,
    log: &LogLimit,
) -> &'a EventFd {
    let Some(tap) = tap_of(taps, vector) else { return trigger };
    tap.connect(trigger).unwrap_or_else(|error| {
        log.warn(format_args!("messages of vector {vector} aren't recorded: {error}"));
        trigger
    })
}

#[cfg(test)]
mod tests {
    use vfio_bindings::bindings::vfio::VFIO_PCI_MSIX_IRQ_INDEX as MSIX;

    use super::super::super::testing::{Call, FakeDevice, FakeFunction};
    use super::*;
    use crate::irq::MsiMessage;
    use crate::pci::testing::FakeMsiRouter;

    fn msix(device: &Arc<FakeDevice>, count: u16) -> (VfioMsi, Arc<FakeMsiRouter>) {
        let router = Arc::new(FakeMsiRouter::new(8));
        let log = Arc::new(LogLimit::named("function"));
        let vectors = MsiVectors::new(router.clone(), count);
        (VfioMsi::new(device.clone(), MSIX, vectors, None, log), router)
    }

    fn to(data: u32) -> Option<MsiMessage> {
        Some(MsiMessage { address: 0x808_0040, data, requester: 8 })
    }

    fn vectors(start: u32, triggers: &[bool]) -> Call {
        Call::SetVectors(MSIX, start, triggers.to_vec())
    }

    #[test]
    fn all_vectors_are_enabled_at_once_and_signalled_when_unmasked() {
        let device = FakeFunction::new(256).calls();
        let (mut msi, router) = msix(&device, 4);
        msi.sync().unwrap();
        assert_eq!(device.take_calls(), [vectors(0, &[false; 4])]);
        msi.vectors.set(2, to(7)).unwrap();
        msi.sync().unwrap();
        msi.sync().unwrap();
        assert_eq!(device.take_calls(), [vectors(2, &[true])]);
        // Masked, moved, unmasked: VFIO isn't called again, and the signal meanwhile is kept.
        msi.vectors.set(2, None).unwrap();
        device.signal(MSIX, 2);
        assert!(msi.vectors.is_pending(2));
        msi.vectors.set(2, to(9)).unwrap();
        msi.sync().unwrap();
        assert_eq!(device.take_calls(), []);
        assert_eq!(router.poll().iter().map(|m| m.data).collect::<Vec<_>>(), [9]);
        drop(msi);
        assert_eq!(device.take_calls(), [Call::ClearTrigger(MSIX)]);
        assert_eq!(router.messages(), []);
    }

    #[test]
    fn a_message_that_is_watched_is_passed_on_and_pends_while_its_vector_is_masked() {
        let device = FakeFunction::new(256).calls();
        let router = Arc::new(FakeMsiRouter::new(8));
        let taps = VectorTap::all(4).unwrap();
        let vectors = MsiVectors::new(router.clone(), 4);
        let log = Arc::new(LogLimit::named("function"));
        let mut msi = VfioMsi::new(device.clone(), MSIX, vectors, Some(taps.clone()), log);
        let data = || router.poll().iter().map(|m| m.data).collect::<Vec<_>>();
        let seen = || {
            let mut seen = Vec::new();
            (0..)
                .zip(&*taps)
                .for_each(|(vector, tap)| tap.pass(|count| seen.push((vector, count))));
            seen
        };
        msi.vectors.set(2, to(7)).unwrap();
        msi.sync().unwrap();
        device.signal(MSIX, 2);
        assert!(data().is_empty());
        assert_eq!((seen(), data()), (vec![(2, 1)], vec![7]));
        msi.vectors.set(2, None).unwrap();
        device.signal(MSIX, 2);
        device.signal(MSIX, 2);
        assert_eq!((seen(), data()), (vec![(2, 2)], vec![]));
        assert!(msi.vectors.is_pending(2));
        msi.vectors.set(2, to(9)).unwrap();
        assert_eq!(data(), [9]);
        // So is that of one that is turned on while others are.
        msi.vectors.set(1, to(5)).unwrap();
        msi.sync().unwrap();
        device.signal(MSIX, 1);
        assert!(data().is_empty());
        assert_eq!((seen(), data()), (vec![(1, 1)], vec![5]));
        msi.vectors.set(1, None).unwrap();
        // One that grows signals those in use once, which is seen too.
        msi.enable(4).unwrap();
        assert_eq!((seen(), data()), (vec![(1, 1), (2, 1)], vec![9]));
        drop(msi);
        // Nobody passes anything on any more.
        taps.iter().for_each(|tap| tap.polled().write(1).unwrap());
        assert_eq!(seen(), []);
        assert_eq!(device.take_calls().last(), Some(&Call::ClearTrigger(MSIX)));
        assert_eq!(router.messages(), []);
    }

    #[test]
    fn a_host_with_few_vectors_enables_those_in_use_and_loses_none_as_they_grow() {
        let device = FakeFunction::new(256).calls();
        device.limit_vectors(3);
        let (mut msi, router) = msix(&device, 64);
        msi.sync().unwrap();
        device.take_calls();
        msi.vectors.set(0, to(1)).unwrap();
        msi.sync().unwrap();
        assert_eq!(device.take_calls().last(), Some(&vectors(0, &[true])));
        msi.vectors.set(2, to(3)).unwrap();
        msi.sync().unwrap();
        let grown = [Call::ClearTrigger(MSIX), vectors(0, &[true, false, true])];
        assert_eq!(device.take_calls(), grown);
        assert_eq!(router.poll().iter().map(|m| m.data).collect::<Vec<_>>(), [1]);
        msi.vectors.set(5, to(6)).unwrap();
        assert!(msi.sync().unwrap_err().is(libc::ENOSPC));
        // Those before go on, signalled once for what was lost in between, and others below can be added.
        assert_eq!(device.take_calls(), grown);
        assert_eq!(router.poll().iter().map(|m| m.data).collect::<Vec<_>>(), [1, 3]);
        device.signal(MSIX, 2);
        assert_eq!(router.poll().iter().map(|m| m.data).collect::<Vec<_>>(), [3]);
        msi.vectors.set(1, to(2)).unwrap();
        msi.sync().unwrap();
        assert_eq!(device.take_calls(), [vectors(1, &[true])]);
    }

    #[test]
    fn of_vectors_that_are_turned_on_together_those_that_the_host_has_are_enabled() {
        for limit in 0..10 {
            let device = FakeFunction::new(256).calls();
            device.limit_vectors(limit);
            let (mut msi, router) = msix(&device, 64);
            (0..8).for_each(|vector| msi.vectors.set(vector, to(vector.into())).unwrap());
            assert_eq!(msi.sync().is_ok(), limit >= 8, "{limit}");
            msi.sync().unwrap();
            assert_eq!(msi.in_use(), limit.min(8));
            router.poll();
            (0..8).for_each(|vector| device.signal(MSIX, vector));
            let signalled: Vec<_> = router.poll().iter().map(|m| m.data as usize).collect();
            assert_eq!(signalled, (0..limit.min(8)).collect::<Vec<_>>());
        }
    }
}
