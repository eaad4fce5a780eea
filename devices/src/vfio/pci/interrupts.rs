//! A function's interrupts: its line (INTx), or MSI or MSI-X, whichever the guest has enabled.

use boot::help::Help;
use std::ops::Range;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_INTX_IRQ_INDEX as INTX, VFIO_PCI_MSI_IRQ_INDEX as MSI, VFIO_PCI_MSIX_IRQ_INDEX as MSIX,
};

use super::super::error_chain::chain;
use super::super::irq::{AssignedIrq, IrqError};
use super::super::uapi::DeviceCalls;
use super::capability;
use super::config::ConfigSpace;
use super::msi::VfioMsi;
use super::tap::{FunctionTaps, VectorTap};
use crate::irq::{MsiRouter, Trigger};
use crate::pci::{Msi, MsiState, MsiVectors, Msix};
use crate::ratelimit::LogLimit;

/// Why an MSI or MSI-X capability is hidden.
const NO_ROUTER: &str = "the guest's interrupt controller takes no messages";
const NO_VECTORS: &str = "VFIO can't deliver its messages";

/// All vectors of a capability.
const ALL: Range<u16> = 0..u16::MAX;

/// A capability and its offset in configuration space.
struct Placed<T> {
    offset: u16,
    registers: T,
}

impl<T> Placed<T> {
    /// The offset in the capability, which has `size` bytes, of an access at `offset` of
    /// configuration space that begins in it.
    fn within(&self, offset: u16, size: u16) -> Option<u16> {
        offset.checked_sub(self.offset).filter(|within| *within < size)
    }
}

/// The kind of interrupt that the guest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// None.
    None,
    /// The line.
    Intx,
    /// MSI, with so many unmasked vectors.
    Msi(usize),
    /// MSI-X, with so many unmasked vectors.
    Msix(usize),
}

/// A function's interrupts.
pub struct Interrupts {
    calls: Arc<dyn DeviceCalls>,
    intx: Option<AssignedIrq>,
    msi: Option<Placed<Msi>>,
    msix: Option<Placed<Msix>>,
    router: Option<Arc<dyn MsiRouter>>,
    /// MSI or MSI-X while it is enabled.
    active: Option<VfioMsi>,
    /// The line is armed while neither MSI nor MSI-X is enabled.
    armed: bool,
    /// What passes the messages of MSI and of MSI-X on, if somebody does.
    taps: Option<[Arc<[VectorTap]>; 2]>,
    log: Arc<LogLimit>,
}

impl Interrupts {
    /// Those that the function has and VFIO can deliver. The others are hidden in `config`.
    ///
    /// # Errors
    ///
    /// If its line can't be had.
    pub fn open(
        calls: Arc<dyn DeviceCalls>,
        name: &str,
        config: &mut ConfigSpace,
    ) -> Result<Self, IrqError> {
        let count = |index| calls.irq_info(index).map_or(0, |info| info.count);
        let mut intx = None;
        if config.interrupt_pin() != 0 && count(INTX) != 0 {
            let line = AssignedIrq::open_intx(calls.clone())?;
            intx = Some(line).filter(|line| line.trigger() == Trigger::Level);
        }
        if intx.is_none() {
            config.drop_interrupt_pin();
        }
        for (id, index) in [(capability::MSI, MSI), (capability::MSIX, MSIX)] {
            if count(index) == 0 {
                config.hide(id, NO_VECTORS);
            }
        }
        let log = Arc::new(LogLimit::named(name));
        let (router, active, armed, taps) = Default::default();
        let mut interrupts =
            Self { calls, intx, msi: None, msix: None, router, active, armed, taps, log };
        interrupts.read_capabilities(config, 0);
        Ok(interrupts)
    }

    /// The line, if the function has one.
    pub fn intx(&self) -> Option<&AssignedIrq> {
        self.intx.as_ref()
    }

    /// Has their signals passed on by what this returns, before any is armed.
    ///
    /// # Errors
    ///
    /// There are no more eventfds.
    #[cold]
    pub fn tap(&mut self) -> Result<FunctionTaps, IrqError> {
        let intx = self.intx.as_mut().map(AssignedIrq::tap).transpose()?;
        let vectors =
            |count, index| VectorTap::all(count).map_err(|error| IrqError::EventFd(index, error));
        let msi = vectors(self.msi_capacity(), MSI)?;
        let msix = vectors(self.msix_capacity(), MSIX)?;
        self.taps = Some([msi.clone(), msix.clone()]);
        Ok(FunctionTaps { intx, msi, msix })
    }

    /// The number of vectors of MSI; 0 if the guest doesn't have it.
    pub fn msi_capacity(&self) -> u16 {
        self.msi.as_ref().map_or(0, |msi| msi.registers.capacity())
    }

    /// The number of vectors of MSI-X; 0 if the guest doesn't have it.
    pub fn msix_capacity(&self) -> u16 {
        self.msix.as_ref().map_or(0, |msix| msix.registers.capacity())
    }

    /// The number of eventfds, beside its line's, that the guest can make it take: one for each
    /// vector.
    pub fn max_eventfds(&self) -> u16 {
        self.msi_capacity().max(self.msix_capacity())
    }

    /// The kind of interrupt that the guest uses.
    pub fn in_use(&self) -> InUse {
        match &self.active {
            Some(active) if active.index() == MSI => InUse::Msi(active.in_use()),
            Some(active) => InUse::Msix(active.in_use()),
            None if self.intx.as_ref().is_some_and(AssignedIrq::is_armed) => InUse::Intx,
            None => InUse::None,
        }
    }

    /// Routes messages to `router` from here on, from `requester`, the function's requester ID in
    /// the guest. Without a router MSI and MSI-X are hidden in `config`.
    pub fn route(
        &mut self,
        router: Option<Arc<dyn MsiRouter>>,
        requester: u16,
        config: &mut ConfigSpace,
    ) {
        if router.is_none() {
            config.hide(capability::MSI, NO_ROUTER);
            config.hide(capability::MSIX, NO_ROUTER);
        }
        self.router = router;
        self.read_capabilities(config, requester);
    }

    /// Whether the function has MSI or MSI-X and the guest gets neither.
    pub fn is_msi_hidden(&self, config: &ConfigSpace) -> bool {
        let is_msi = |id| id == capability::MSI || id == capability::MSIX;
        let has = config.capabilities().iter().any(|capability| is_msi(capability.id));
        has && self.msi.is_none() && self.msix.is_none()
    }

    fn read_capabilities(&mut self, config: &mut ConfigSpace, requester: u16) {
        self.msi = config.find(capability::MSI).map(|offset| {
            let registers = Msi::new(config.read_u32(offset), requester);
            Placed { offset, registers }
        });
        self.msix = config.find(capability::MSIX).map(|offset| {
            let structure = [0, 4, 8].map(|at| config.read_u32(offset.saturating_add(at)));
            Placed { offset, registers: Msix::new(structure, requester) }
        });
    }

    /// Arms the line, unless MSI or MSI-X is enabled.
    pub fn arm(&mut self) {
        self.armed = true;
        self.sync();
    }

    /// Disables all of them.
    pub fn disarm(&mut self) {
        self.armed = false;
        self.active = None;
        self.sync();
    }

    /// Resets MSI and MSI-X, as a reset of the function does.
    pub fn reset(&mut self) {
        if let Some(Placed { registers, .. }) = &mut self.msi {
            let before = registers.enabled_vectors();
            registers.reset();
            self.apply(MSI, before, ALL);
        }
        if let Some(Placed { registers, .. }) = &mut self.msix {
            let before = registers.enabled_vectors();
            registers.reset();
            self.apply(MSIX, before, ALL);
        }
    }

    /// The function has this requester ID in the guest from here on. Messages that are routed already keep the one
    /// that they have until the guest changes or unmasks them: it numbers buses before drivers enable messages, and
    /// each route that changes takes the kernel a new table.
    pub fn set_requester(&mut self, requester: u16) {
        self.msi.iter_mut().for_each(|msi| msi.registers.set_requester(requester));
        self.msix.iter_mut().for_each(|msix| msix.registers.set_requester(requester));
    }

    /// What limits messages that the guest causes.
    pub(super) fn log(&self) -> &LogLimit {
        &self.log
    }

    /// The guest reads configuration space. Whether that is within MSI or MSI-X.
    pub fn read_config(&self, offset: u16, data: &mut [u8]) -> bool {
        if let Some(msi) = &self.msi
            && let Some(within) = msi.within(offset, msi.registers.size())
        {
            msi.registers.read(within, data, |vector| self.is_pending(vector));
            return true;
        }
        if let Some(msix) = &self.msix
            && let Some(within) = msix.within(offset, Msix::SIZE)
        {
            msix.registers.read(within, data);
            return true;
        }
        false
    }

    /// The guest writes to configuration space. Whether that is within MSI or MSI-X.
    pub fn write_config(&mut self, offset: u16, data: &[u8]) -> bool {
        if let Some(msi) = &mut self.msi
            && let Some(within) = msi.within(offset, msi.registers.size())
        {
            let before = msi.registers.enabled_vectors();
            if msi.registers.write(within, data) {
                self.apply(MSI, before, ALL);
            }
            return true;
        }
        if let Some(msix) = &mut self.msix
            && let Some(within) = msix.within(offset, Msix::SIZE)
        {
            let before = msix.registers.enabled_vectors();
            if msix.registers.write(within, data) {
                self.apply(MSIX, before, ALL);
            }
            return true;
        }
        false
    }

    /// The guest reads a BAR. Whether that is within the MSI-X table or its pending bits.
    pub fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        let Some(Placed { registers, .. }) = &self.msix else { return false };
        if let Some(within) = registers.table().find(bar, offset, data.len()) {
            registers.read_table(within, data);
        } else if let Some(within) = registers.pending_bits().find(bar, offset, data.len()) {
            registers.read_pending(within, data, |vector| self.is_pending(vector));
        } else {
            return false;
        }
        true
    }

    /// The guest writes to a BAR. Whether that is within the MSI-X table or its pending bits, which
    /// are read-only.
    pub fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> bool {
        let Some(Placed { registers, .. }) = &mut self.msix else { return false };
        let Some(within) = registers.table().find(bar, offset, data.len()) else {
            return registers.pending_bits().find(bar, offset, data.len()).is_some();
        };
        let before = registers.enabled_vectors();
        if let Some(vector) = registers.write_table(within, data) {
            self.apply(MSIX, before, vector..vector.saturating_add(1));
        }
        true
    }

    /// Whether a vector in use was signalled while it was masked.
    fn is_pending(&self, vector: u16) -> bool {
        self.active.as_ref().is_some_and(|active| active.vectors.is_pending(vector))
    }

    /// Carries out a write to the capability of this VFIO index, of which `before` vectors were
    /// enabled; the messages of `changed` may be others now.
    fn apply(&mut self, index: u32, before: u16, mut changed: Range<u16>) {
        let Self { calls, msi, msix, router, active, taps, log, .. } = self;
        let state: Option<&dyn MsiState> = match index {
            MSI => msi.as_ref().map(|msi| &msi.registers as _),
            _ => msix.as_ref().map(|msix| &msix.registers as _),
        };
        let enabled = state.map_or(0, MsiState::enabled_vectors);
        let is_active = |active: &VfioMsi| active.index() == index;
        if enabled != before {
            // VFIO delivers one kind at a time, so the other must be disabled first. A driver that
            // enables both gets the last (PCI 3.0, 6.8.2 leaves it undefined).
            if enabled != 0 || active.as_ref().is_some_and(is_active) {
                *active = None;
            }
            if let (Some(router), 1..) = (router, enabled) {
                let vectors = MsiVectors::new(router.clone(), enabled);
                let taps = taps.as_ref().map(|[msi, msix]| if index == MSI { msi } else { msix });
                let taps = taps.cloned();
                *active = Some(VfioMsi::new(calls.clone(), index, vectors, taps, log.clone()));
            }
            changed = ALL;
        }
        if let (Some(state), Some(active)) = (state, active.as_mut().filter(|a| is_active(a))) {
            for vector in changed.start..changed.end.min(enabled) {
                if let Err(error) = active.vectors.set(vector, state.message(vector)) {
                    let what = "can't reach the guest";
                    log.error(format_args!("vector {vector} {what}: {error}"));
                }
            }
        }
        self.sync();
    }

    /// Has VFIO deliver what is in use, and nothing else.
    fn sync(&mut self) {
        let wanted = self.armed && self.active.is_none();
        if let Some(intx) = &mut self.intx {
            if !wanted {
                intx.disarm();
            } else if !intx.is_armed()
                && let Err(error) = intx.arm()
            {
                let help = error.help().map(|help| format!(" ({help})")).unwrap_or_default();
                self.log.error(format_args!("{}{help}", chain(&error)));
            }
        }
        if let Some(Err(error)) = self.active.as_mut().map(VfioMsi::sync) {
            let cause = chain(&error);
            self.log.error(format_args!("its messages can't all be delivered: {cause}"));
        }
    }
}
