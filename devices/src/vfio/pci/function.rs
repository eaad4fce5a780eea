//! The function as the host bridge and the VMM see it.

use std::fmt;
use std::sync::Arc;

use super::super::error_chain::chain;
use super::super::quiesce::Quiesced;
use super::super::uapi::DeviceCalls;
use super::capability::{self, Capability};
use super::config::ConfigSpace;
use super::error::FunctionError;
use super::interrupts::{InUse, Interrupts};
use super::registers::{BarSheet, Registers, RegistersError};
use crate::bus::MemorySlots;
use crate::irq::{InterruptController, MsiRouter};
use crate::pci::{Bars, Function, Msix, Pin, Seat, TablePlace, Window};

mod reset;

/// `PCI_COMMAND` and its bit for memory.
const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const MEMORY: u16 = 1 << 1;
/// Those for ports, memory and bus mastering, one of which a driver sets.
const ENABLING: u16 = 0b111;

/// Of the power management capability (PCI Power Management 1.2, 3.2.4): the control register, and
/// the bits of the state, 0 of which is D0.
const POWER_CONTROL: u16 = 4;
const POWER_STATE: u8 = 0b11;

/// What a person can choose for a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciOptions {
    /// Map its BARs into the guest where they can be; otherwise the guest's accesses trap.
    pub mmap: bool,
    /// Reset it before the guest gets it and after; otherwise it is left as it is.
    pub reset: bool,
}

impl Default for PciOptions {
    fn default() -> Self {
        Self { mmap: true, reset: true }
    }
}

/// Where a function is attached to the guest.
pub struct Attachment {
    /// Its place behind the bridge.
    pub seat: Seat,
    /// What its BARs are mapped through.
    pub slots: Arc<dyn MemorySlots>,
    /// Where its messages go, if the guest's interrupt controller takes any.
    pub router: Option<Arc<dyn MsiRouter>>,
}

/// An assigned PCI function.
pub struct PciFunction {
    // The interrupts are dropped, and so disarmed, first.
    interrupts: Interrupts,
    registers: Registers,
    config: ConfigSpace,
    name: String,
    calls: Arc<dyn DeviceCalls>,
    options: PciOptions,
    /// VFIO can reset it.
    can_reset: bool,
    /// It is in D0, in which its BARs decode.
    powered: bool,
    /// The guest may have touched it since it was quiesced last.
    touched: bool,
    /// The guest has turned it on.
    enabled: bool,
}

impl fmt::Debug for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciFunction").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PciFunction {
    /// The function behind these calls, called `name`, on a host whose pages have `page_size` bytes.
    ///
    /// # Errors
    ///
    /// If it has something that can't be a guest's.
    pub fn open(
        calls: Arc<dyn DeviceCalls>,
        name: &str,
        options: PciOptions,
        page_size: u64,
    ) -> Result<Self, FunctionError> {
        let unknown = |source| FunctionError::Unknown { name: name.to_owned(), source };
        let info = calls.info().map_err(unknown)?;
        if !info.pci {
            return Err(FunctionError::Strange { name: name.to_owned(), info });
        }
        let mut config = ConfigSpace::open(calls.clone(), name)
            .map_err(|source| FunctionError::Config { name: name.to_owned(), source })?;
        let page_size = options.mmap.then_some(page_size);
        let holes = tables(&config);
        let registers = Registers::open(name, &calls, config.image(), page_size, &holes);
        let registers = registers.map_err(|error| match error {
            RegistersError::Unknown(source) => unknown(source),
            RegistersError::Bar(source) => FunctionError::Bar { name: name.to_owned(), source },
        })?;
        let interrupts = Interrupts::open(calls.clone(), name, &mut config)
            .map_err(|source| FunctionError::Irq { name: name.to_owned(), source })?;
        let (name, can_reset) = (name.to_owned(), info.reset);
        let (powered, touched, enabled) = (true, false, false);
        Ok(Self {
            interrupts,
            registers,
            config,
            name,
            calls,
            options,
            can_reset,
            powered,
            touched,
            enabled,
        })
    }

    /// Its configuration space as it was when it was opened.
    pub fn image(&self) -> &super::Image {
        self.config.image()
    }

    /// Its capabilities, those that the guest doesn't get among them.
    pub fn capabilities(&self) -> &[Capability] {
        self.config.capabilities()
    }

    /// Its base address registers.
    pub fn bars(&self) -> Vec<BarSheet> {
        self.registers.sheet()
    }

    /// Its interrupts.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// Its interrupt pin, if it has a line that the guest can be given.
    pub fn pin(&self) -> Option<Pin> {
        Pin::from_register(self.config.interrupt_pin())
    }

    /// What interrupts the guest at present.
    pub fn in_use(&self) -> InUse {
        self.interrupts.in_use()
    }

    /// Whether the guest has ever turned it on, as a driver does: its command register let it use
    /// ports, memory or DMA.
    pub fn has_been_enabled(&self) -> bool {
        self.enabled
    }

    /// Attaches it to the guest, whose interrupt controller `gic` must be complete. Its line isn't
    /// let through yet.
    ///
    /// # Safety
    ///
    /// It must not be dropped while the guest can run.
    ///
    /// # Errors
    ///
    /// If no interrupt of it can reach the guest.
    pub unsafe fn attach(
        &mut self,
        attachment: Attachment,
        gic: &dyn InterruptController,
    ) -> Result<(), FunctionError> {
        let Attachment { seat, slots, router } = attachment;
        self.touched = true;
        // SAFETY: passed on.
        unsafe { self.registers.map_through(slots) };
        self.interrupts.route(router, seat.bdf.requester_id(), &mut self.config);
        // As after power-up: VFIO has switched decoding on, and a guest that finds it so would have
        // the function decode addresses it has not given yet.
        self.write_command(0);
        match (self.interrupts.intx(), seat.intx) {
            (Some(line), Some(intx)) => line
                .connect(gic, intx.spi)
                .map_err(|source| FunctionError::Irq { name: self.name.clone(), source })?,
            _ if self.interrupts.are_messages_lost(&self.config) => {
                return Err(FunctionError::NoInterrupt { name: self.name.clone() });
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets its line through, unless its messages are in use.
    pub fn arm(&mut self) {
        self.interrupts.arm();
    }

    /// Takes it back from a guest that runs no more: its interrupts are stopped, then itself.
    /// Nothing if the guest never had it.
    ///
    /// # Errors
    ///
    /// If it can't be reset. The kernel keeps it from all memory once its files are closed.
    pub fn release(&mut self) -> Result<Quiesced, FunctionError> {
        self.interrupts.disarm();
        if !std::mem::take(&mut self.touched) {
            return Ok(Quiesced::Disabled);
        }
        self.registers.forward(&[]);
        self.quiesce()
    }

    /// The guest writes `value` to the command register.
    fn write_command(&mut self, value: u16) {
        if value & MEMORY == 0 {
            // Before VFIO takes the memory away: a guest's access to it then is no one's.
            self.registers.forward(&[]);
        }
        self.config.write(COMMAND, &value.to_le_bytes());
        self.registers.bars().set_command(value);
    }

    /// The guest writes to the first dword of the status or the command register.
    fn write_command_and_status(&mut self, offset: u16, data: &[u8]) {
        let mut command = [0; 2];
        self.config.read(COMMAND, &mut command);
        let at = usize::from(offset.saturating_sub(COMMAND));
        let mut changed = false;
        for (byte, new) in command.iter_mut().skip(at).zip(data) {
            (*byte, changed) = (*new, true);
        }
        if changed {
            let command = u16::from_le_bytes(command);
            self.enabled |= command & ENABLING != 0;
            self.write_command(command);
        }
        if let Some(status) = data.get(2usize.saturating_sub(at)..).filter(|s| !s.is_empty()) {
            self.config.write(offset.max(STATUS), status);
        }
    }

    /// The guest may change the function's power state by this write.
    fn write_power(&mut self, control: u16, offset: u16, data: &[u8]) {
        // Before VFIO takes the memory away.
        if byte_at(control, offset, data).is_some_and(|state| state & POWER_STATE != 0) {
            self.powered = false;
            self.registers.forward(&[]);
        }
        self.config.write(offset, data);
        let mut state = [0];
        self.config.read(control, &mut state);
        self.powered = state[0] & POWER_STATE == 0;
    }

    /// Reads of the MSI-X table and its pending bits; whether `bar` and `offset` are there.
    fn read_tables(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        let Some(msix) = self.interrupts.msix() else { return false };
        if let Some(within) = msix.registers.table().find(bar, offset, data.len()) {
            msix.registers.read_table(within, data);
            return true;
        }
        let Some(within) = msix.registers.pending_bits().find(bar, offset, data.len()) else {
            return false;
        };
        msix.registers.read_pending(within, data, |vector| self.interrupts.is_pending(vector));
        true
    }
}

impl Function for PciFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        if Bars::covers(offset) {
            self.registers.bars().read(offset, data);
            return;
        }
        if let Some(msi) = self.interrupts.msi()
            && let Some(within) = msi.within(offset, msi.registers.size())
        {
            msi.registers.read(within, data, |vector| self.interrupts.is_pending(vector));
            return;
        }
        if let Some(msix) = self.interrupts.msix()
            && let Some(within) = msix.within(offset, Msix::SIZE)
        {
            msix.registers.read(within, data);
            return;
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if Bars::covers(offset) {
            self.registers.bars().write(offset, data);
            return;
        }
        if let Some(msi) = self.interrupts.msi()
            && let Some(within) = msi.within(offset, msi.registers.size())
        {
            self.interrupts.write_msi(within, data);
            return;
        }
        if let Some(msix) = self.interrupts.msix()
            && let Some(within) = msix.within(offset, Msix::SIZE)
        {
            self.interrupts.write_msix(within, data);
            return;
        }
        if offset & !3 == COMMAND {
            self.write_command_and_status(offset, data);
            return;
        }
        let power = self.config.find(capability::PM).map(|pm| pm.saturating_add(POWER_CONTROL));
        match power.filter(|control| byte_at(*control, offset, data).is_some()) {
            Some(control) => self.write_power(control, offset, data),
            None if self.is_reset(offset, data) => self.reset_itself(offset, data),
            None => self.config.write(offset, data),
        }
    }

    fn windows(&self) -> Vec<Window> {
        if self.powered { self.registers.windows() } else { Vec::new() }
    }

    fn decodes(&self, window: &Window) -> bool {
        self.powered && self.registers.decodes(window)
    }

    fn forward(&mut self, windows: &[Window]) {
        // As of now: with memory turned off by another vCPU since the bridge asked, VFIO answers an
        // access to what is mapped with a fault that ends the guest.
        let mut windows = windows.to_vec();
        let now = self.windows();
        windows.retain(|window| now.contains(window));
        self.registers.forward(&windows);
    }

    fn trap(&mut self) -> bool {
        self.registers.trap()
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if !self.read_tables(bar, offset, data) {
            self.registers.read(bar, offset, data);
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        let places = self.interrupts.msix().map(|msix| {
            let (table, pending) = (msix.registers.table(), msix.registers.pending_bits());
            (table.find(bar, offset, data.len()), pending.find(bar, offset, data.len()))
        });
        match places {
            Some((Some(within), _)) => self.interrupts.write_table(within, data),
            // Pending bits can't be written.
            Some((_, Some(_))) => {}
            _ => self.registers.write(bar, offset, data),
        }
    }
}

impl Drop for PciFunction {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            log::error!("{}", chain(&error));
        }
    }
}

/// The byte that a write of `data` at `offset` puts at `place`.
fn byte_at(place: u16, offset: u16, data: &[u8]) -> Option<u8> {
    data.get(usize::from(place.checked_sub(offset)?)).copied()
}

/// Where the function's MSI-X table and pending bits are, also if its guest doesn't get MSI-X: the
/// host uses them.
fn tables(config: &ConfigSpace) -> Vec<TablePlace> {
    let capabilities = config.capabilities().iter().filter(|c| c.id == capability::MSIX);
    let places = capabilities.flat_map(|capability| {
        let dword = |at| config.image().u32(capability.offset.saturating_add(at));
        let msix = Msix::new([dword(0), dword(4), dword(8)], 0);
        [msix.table(), msix.pending_bits()]
    });
    places.collect()
}

#[cfg(test)]
mod tests;
