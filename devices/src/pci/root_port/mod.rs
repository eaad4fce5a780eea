//! A root port with a hot-plug slot, behind which a function is on a bus of its own.

mod registers;

use std::io;
use std::sync::Mutex;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::registers::{
    COMMAND_INTX_DISABLE, HOT_PLUG_INTERRUPT_ENABLE, LINK_ACTIVE, LINK_CHANGED,
    LINK_CHANGED_ENABLE, LINK_CONTROL, LINK_DISABLE, LINK_STATUS, POWER_OFF, PRESENCE_CHANGED,
    PRESENCE_CHANGED_ENABLE, PRESENT, Registers, SECONDARY_BUS, SLOT_CONTROL, SLOT_STATUS,
    STATUS_INTERRUPT,
};
use super::address::{Bdf, InterruptPin};
use super::bars::BarRange;
use super::config::{COMMAND, STATUS};
use crate::irq::IrqLine;
use crate::sync::lock;

/// What a guest's write to a port's registers has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PortChange {
    /// The function behind it may decode more or less.
    pub(super) forwarding: bool,
    /// The function behind it is reset.
    pub(super) reset: bool,
}

/// A root port whose slot holds a function that its guest can eject, and that can be taken from the guest.
///
/// The guest's hot-plug driver turns the slot's power off when it has unbound the function's driver, as
/// `echo 0 >/sys/bus/pci/slots/N/power` has Linux do: that [ejects](Self::ejected) the function, as in QEMU's
/// port. The slot is empty from then on. A function that is [taken away](Self::vacate) leaves the link down, which interrupts
/// the guest (PCI Express Base 5.0, 6.7).
pub struct RootPort {
    bdf: Bdf,
    number: u8,
    pin: InterruptPin,
    state: Mutex<State>,
    ejected: EventFd,
}

struct State {
    registers: Registers,
    /// The function hasn't been ejected or taken away.
    occupied: bool,
    line: Option<Box<dyn IrqLine>>,
    /// The line is high.
    asserted: bool,
}

impl RootPort {
    /// The most ports that a guest has: each has a bus, whose configuration space takes 1 MiB.
    pub const MAX: u8 = 7;

    /// The port of this number (from 1), at this address of bus 0, before a function whose interrupt pin is
    /// `pin`, if it has one. The port's own pin is another, so that they have interrupts of their own: behind a
    /// port, the pins of device 0 are the port's (PCI-to-PCI Bridge Architecture 1.2, 9.1).
    ///
    /// # Errors
    ///
    /// The process has no more descriptors.
    pub fn new(bdf: Bdf, number: u8, pin: Option<InterruptPin>) -> io::Result<Self> {
        let pin =
            if pin == Some(InterruptPin::INTA) { InterruptPin::INTB } else { InterruptPin::INTA };
        let state = State {
            registers: Registers::new(number, pin),
            occupied: true,
            line: None,
            asserted: false,
        };
        let port = Self {
            bdf,
            number,
            pin,
            state: Mutex::new(state),
            ejected: EventFd::new(EFD_NONBLOCK)?,
        };
        lock(&port.state).power_up();
        Ok(port)
    }

    /// Its address.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Its interrupt pin.
    pub fn pin(&self) -> InterruptPin {
        self.pin
    }

    /// Its number, by which guests call the slot: 1 to [`MAX`](Self::MAX). A guest that numbers buses in
    /// order, and has no others, gives this number to the bus behind the port.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// What tells that the guest has ejected the function.
    pub fn ejected(&self) -> &EventFd {
        &self.ejected
    }

    /// Interrupts the guest by this line.
    pub fn connect(&self, line: Box<dyn IrqLine>) {
        lock(&self.state).line = Some(line);
    }

    /// The function has been taken away: the slot is empty and its link down.
    pub fn vacate(&self) {
        let mut state = lock(&self.state);
        if std::mem::replace(&mut state.occupied, false) {
            state.registers.set(SLOT_STATUS, PRESENCE_CHANGED, true);
        }
        state.update();
    }

    /// Its registers are as after power-up, and what was in the slot is there.
    #[cold]
    pub(super) fn reset(&self) {
        let mut state = lock(&self.state);
        state.registers = Registers::new(self.number, self.pin);
        state.power_up();
    }

    /// The guest reads its configuration space.
    pub(super) fn read_config(&self, register: u16, data: &mut [u8]) {
        lock(&self.state).registers.read(register, data);
    }

    /// The guest writes to its configuration space.
    pub(super) fn write_config(&self, register: u16, data: &[u8]) -> PortChange {
        let mut state = lock(&self.state);
        let (was_up, was_reset) = (state.is_up(), state.registers.resets_bus());
        let had_power = state.has_power();
        state.registers.write(register, data);
        if had_power && !state.has_power() && std::mem::replace(&mut state.occupied, false) {
            state.registers.set(SLOT_STATUS, PRESENCE_CHANGED, true);
            // Once at most: nothing comes back into the slot.
            let _ = self.ejected.write(1);
        }
        state.update();
        let is_header = register < HEADER_SIZE;
        let went_down = was_up && !state.is_up();
        let is_reset = went_down || !was_reset && state.registers.resets_bus();
        let forwarding = is_header || was_up != state.is_up();
        PortChange { forwarding, reset: is_reset && state.occupied }
    }

    /// Whether configuration accesses to the function on `bus` go through.
    pub(super) fn leads_to(&self, bus: u8) -> bool {
        let state = lock(&self.state);
        state.is_up() && bus != 0 && state.registers.u8(SECONDARY_BUS) == bus
    }

    /// Whether accesses to this range of the function behind it go through.
    pub(super) fn forwards(&self, range: &BarRange) -> bool {
        let state = lock(&self.state);
        state.is_up() && state.registers.forwards(range)
    }
}

/// The size of a type 1 header.
const HEADER_SIZE: u16 = 0x40;

impl State {
    fn power_up(&mut self) {
        // No event: this is how the guest finds it.
        self.show();
        self.interrupt();
    }

    fn has_power(&self) -> bool {
        !self.registers.has(SLOT_CONTROL, POWER_OFF)
    }

    /// Whether there is a link to a function.
    fn is_up(&self) -> bool {
        self.occupied && self.has_power() && !self.registers.has(LINK_CONTROL, LINK_DISABLE)
    }

    /// Tells the guest what is in the slot, and what has changed.
    fn update(&mut self) {
        if self.registers.has(LINK_STATUS, LINK_ACTIVE) != self.is_up() {
            self.registers.set(SLOT_STATUS, LINK_CHANGED, true);
        }
        self.show();
        self.interrupt();
    }

    fn show(&mut self) {
        let (occupied, up) = (self.occupied, self.is_up());
        self.registers.set(SLOT_STATUS, PRESENT, occupied);
        self.registers.set(LINK_STATUS, LINK_ACTIVE, up);
    }

    /// Asserts the line while an event that is enabled hasn't been cleared (PCI Express Base 5.0, 6.7.3.4).
    fn interrupt(&mut self) {
        let registers = &mut self.registers;
        let events =
            [(PRESENCE_CHANGED, PRESENCE_CHANGED_ENABLE), (LINK_CHANGED, LINK_CHANGED_ENABLE)];
        let is_pending = events.into_iter().any(|(event, enable)| {
            registers.has(SLOT_STATUS, event) && registers.has(SLOT_CONTROL, enable)
        }) && registers.has(SLOT_CONTROL, HOT_PLUG_INTERRUPT_ENABLE);
        registers.set(STATUS, STATUS_INTERRUPT, is_pending);
        let high = is_pending && !registers.has(COMMAND, COMMAND_INTX_DISABLE);
        if std::mem::replace(&mut self.asserted, high) != high {
            self.line.iter().for_each(|line| line.set(high));
        }
    }
}

#[cfg(test)]
mod tests;
