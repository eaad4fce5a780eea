//! A function's interrupts: one line (INTx), or messages (MSI or MSI-X), whichever the guest has
//! turned on.

use std::sync::Arc;

use super::super::error_chain::chain;
use super::super::irq::{AssignedIrq, IrqError};
use super::super::uapi::DeviceCalls;
use super::capability;
use super::config::ConfigSpace;
use super::messages::Messages;
use crate::irq::{MsiRouter, Trigger};
use crate::pci::{Effect, Msi, Msix};
use crate::ratelimit::LogLimit;

/// VFIO's indices of a function's interrupts (`VFIO_PCI_INTX_IRQ_INDEX` and so on).
const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;

/// Why a capability for messages is hidden.
const NO_ROUTER: &str = "the guest's interrupt controller takes no messages";
const NO_VECTORS: &str = "VFIO can't deliver its messages";

/// A capability and where it is in configuration space.
#[derive(Debug)]
pub struct Placed<T> {
    /// Where, in bytes.
    pub offset: u16,
    /// The capability's registers.
    pub registers: T,
}

impl<T> Placed<T> {
    /// Where in the capability, which has `size` bytes, an access at `offset` of configuration
    /// space is, if it begins there.
    pub fn within(&self, offset: u16, size: u16) -> Option<u16> {
        offset.checked_sub(self.offset).filter(|within| *within < size)
    }
}

/// What interrupts the guest at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// Nothing.
    None,
    /// The line.
    Intx,
    /// So many vectors of MSI.
    Msi(usize),
    /// So many vectors of MSI-X.
    Msix(usize),
}

/// A function's interrupts.
pub struct Interrupts {
    calls: Arc<dyn DeviceCalls>,
    intx: Option<AssignedIrq>,
    msi: Option<Placed<Msi>>,
    msix: Option<Placed<Msix>>,
    router: Option<Arc<dyn MsiRouter>>,
    messages: Option<Messages>,
    /// The line may be let through when no messages are in use.
    armed: bool,
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
        let (router, messages, armed) = Default::default();
        let mut interrupts =
            Self { calls, intx, msi: None, msix: None, router, messages, armed, log };
        interrupts.read_capabilities(config, 0);
        Ok(interrupts)
    }

    /// The line, if the function has one.
    pub fn intx(&self) -> Option<&AssignedIrq> {
        self.intx.as_ref()
    }

    /// The MSI capability, if the guest has it.
    pub fn msi(&self) -> Option<&Placed<Msi>> {
        self.msi.as_ref()
    }

    /// The MSI-X capability, if the guest has it.
    pub fn msix(&self) -> Option<&Placed<Msix>> {
        self.msix.as_ref()
    }

    /// How many eventfds the guest can make it take beside its line's, which it has: one for each
    /// vector of the kind that has more.
    pub fn most_eventfds(&self) -> u16 {
        let msi = self.msi.as_ref().map_or(0, |msi| msi.registers.capacity());
        let msix = self.msix.as_ref().map_or(0, |msix| msix.registers.capacity());
        msi.max(msix)
    }

    /// What interrupts the guest at present.
    pub fn in_use(&self) -> InUse {
        match &self.messages {
            Some(messages) if messages.index() == MSI => InUse::Msi(messages.in_use()),
            Some(messages) => InUse::Msix(messages.in_use()),
            None if self.intx.as_ref().is_some_and(AssignedIrq::is_armed) => InUse::Intx,
            None => InUse::None,
        }
    }

    /// Has messages go to `router` from here on, from `requester`, the function's requester ID in
    /// the guest. Without a router their capabilities are hidden in `config`.
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

    /// Whether the function has messages and the guest gets none of them.
    pub fn are_messages_lost(&self, config: &ConfigSpace) -> bool {
        let messages = |id| id == capability::MSI || id == capability::MSIX;
        let has = config.capabilities().iter().any(|capability| messages(capability.id));
        has && self.msi.is_none() && self.msix.is_none()
    }

    fn read_capabilities(&mut self, config: &mut ConfigSpace, requester: u16) {
        let place = |id| config.find(id);
        let (msi, msix) = (place(capability::MSI), place(capability::MSIX));
        self.msi = msi.map(|offset| {
            let registers = Msi::new(config.read_u32(offset), requester);
            Placed { offset, registers }
        });
        self.msix = msix.map(|offset| {
            let structure = [0, 4, 8].map(|at| config.read_u32(offset.saturating_add(at)));
            Placed { offset, registers: Msix::new(structure, requester) }
        });
    }

    /// Lets the line through, unless messages are in use.
    pub fn arm(&mut self) {
        self.armed = true;
        self.settle();
    }

    /// Stops all of them.
    pub fn disarm(&mut self) {
        self.armed = false;
        self.messages = None;
        self.settle();
    }

    /// As a reset of the function does: no messages are in use.
    pub fn reset(&mut self) {
        let effects = self.msi.as_mut().map(|msi| msi.registers.reset());
        self.apply(MSI, effects);
        let effects = self.msix.as_mut().map(|msix| msix.registers.reset());
        self.apply(MSIX, effects);
    }

    /// Whether a vector of the messages in use was signalled while it was masked.
    pub fn is_pending(&self, vector: u16) -> bool {
        self.messages.as_ref().is_some_and(|messages| messages.is_pending(vector))
    }

    /// The guest writes into the MSI capability, at `offset` of it.
    pub fn write_msi(&mut self, offset: u16, data: &[u8]) {
        let effects = self.msi.as_mut().map(|msi| msi.registers.write(offset, data));
        self.apply(MSI, effects);
    }

    /// The guest writes into the MSI-X capability, at `offset` of it.
    pub fn write_msix(&mut self, offset: u16, data: &[u8]) {
        let effects = self.msix.as_mut().map(|msix| msix.registers.write(offset, data));
        self.apply(MSIX, effects);
    }

    /// The guest writes into the MSI-X table, at `offset` of it.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let effects = self.msix.as_mut().map(|msix| msix.registers.write_table(offset, data));
        self.apply(MSIX, effects);
    }

    /// Carries out what a write changed.
    fn apply(&mut self, index: u32, effects: Option<Vec<Effect>>) {
        let effects = effects.filter(|effects| !effects.is_empty());
        for effect in effects.iter().flatten() {
            match *effect {
                // A driver that turns on both kinds gets what it asked for last (PCI 3.0, 6.8.2
                // leaves it undefined).
                Effect::Enabled { vectors } => self.enable(index, vectors),
                Effect::Disabled => drop(self.messages.take_if(|m| m.index() == index)),
                Effect::Delivery { vector, delivery } => {
                    let messages = self.messages.as_mut().filter(|m| m.index() == index);
                    let delivered = messages.map(|messages| messages.deliver(vector, delivery));
                    if let Some(Err(error)) = delivered {
                        let what = "can't reach the guest";
                        self.log.error(format_args!("vector {vector} {what}: {error}"));
                    }
                }
            }
        }
        if effects.is_some() {
            self.settle();
        }
    }

    fn enable(&mut self, index: u32, count: u16) {
        // VFIO delivers one kind at a time: the others must be off before it turns these on.
        self.messages = None;
        if let Some(router) = &self.router {
            let (calls, router, log) = (self.calls.clone(), router.clone(), self.log.clone());
            self.messages = Some(Messages::new(calls, index, router, count, log));
        }
    }

    /// Has VFIO deliver what is in use, and nothing else.
    fn settle(&mut self) {
        let wanted = self.armed && self.messages.is_none();
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
        let settled = self.messages.as_mut().map(Messages::settle);
        if let Some(Err(error)) = settled {
            let cause = chain(&error);
            self.log.error(format_args!("its messages can't all be delivered: {cause}"));
        }
    }
}
