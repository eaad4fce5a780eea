//! The function as the host bridge and the VMM see it.

use std::fmt;
use std::sync::Arc;

use super::super::error_chain::chain;
use super::super::quiesce::Quiesced;
use super::super::uapi::DeviceCalls;
use super::bars::{BarInfo, VfioBars};
use super::capability::{self, Capability};
use super::config::ConfigSpace;
use super::error::{FunctionError, FunctionErrorKind};
use super::interrupts::{InUse, Interrupts};
use super::tap::FunctionTaps;
use crate::bus::MemorySlots;
use crate::irq::{InterruptController, MsiRouter};
use crate::pci::config::{COMMAND, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, STATUS};
use crate::pci::{
    BarRange, Bars, Bdf, ConfigSnapshot, Function, InterruptPin, Msix, MsixArea, Slot,
};

mod reset;

use self::reset::Reset;

/// The command register's bits of which a driver sets at least one.
const ENABLING: u16 = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER;

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
    /// Its slot behind the bridge.
    pub slot: Slot,
    /// Maps its BARs.
    pub slots: Arc<dyn MemorySlots>,
    /// Routes its messages, if the guest's interrupt controller takes any.
    pub router: Option<Arc<dyn MsiRouter>>,
}

/// An assigned PCI function.
pub struct PciFunction {
    // The interrupts are dropped, and so disarmed, first.
    interrupts: Interrupts,
    bars: VfioBars,
    config: ConfigSpace,
    name: String,
    calls: Arc<dyn DeviceCalls>,
    options: PciOptions,
    /// How VFIO can reset it.
    reset: Reset,
    /// It is in D0, in which its BARs decode.
    powered: bool,
    /// The guest may have touched it since it was quiesced last.
    touched: bool,
    /// The guest has turned it on.
    enabled: bool,
    /// That it can't be reset has been logged.
    said: bool,
    /// It is a vfio-user server's, none of the host's.
    of_server: bool,
    /// The guest's bus that it is on.
    bus: u8,
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
        Self::open_named(calls, name, options, page_size)
            .map_err(|kind| FunctionError { name: name.to_owned(), kind })
    }

    fn open_named(
        calls: Arc<dyn DeviceCalls>,
        name: &str,
        options: PciOptions,
        page_size: u64,
    ) -> Result<Self, FunctionErrorKind> {
        let info = calls.info().map_err(FunctionErrorKind::Info)?;
        if !info.pci {
            return Err(FunctionErrorKind::NotPci(info));
        }
        let mut config =
            ConfigSpace::open(calls.clone(), name).map_err(FunctionErrorKind::Config)?;
        let page_size = options.mmap.then_some(page_size);
        let tables = msix_areas(&config);
        let bars = VfioBars::open(name, &calls, config.snapshot(), page_size, &tables)?;
        let interrupts =
            Interrupts::open(calls.clone(), name, &mut config).map_err(FunctionErrorKind::Irq)?;
        Ok(Self {
            interrupts,
            bars,
            config,
            name: name.to_owned(),
            calls,
            options,
            reset: if info.reset { Reset::ByItself } else { Reset::None(None) },
            powered: true,
            touched: false,
            enabled: false,
            said: false,
            of_server: false,
            bus: 0,
        })
    }

    /// Tells that it is a vfio-user server's: the host has no part in it.
    pub fn set_of_server(&mut self) {
        self.of_server = true;
    }

    fn error(&self, kind: FunctionErrorKind) -> FunctionError {
        FunctionError { name: self.name.clone(), kind }
    }

    /// Its configuration space as it was when it was opened.
    pub fn snapshot(&self) -> &ConfigSnapshot {
        self.config.snapshot()
    }

    /// Its capabilities, including those that the guest doesn't get.
    pub fn capabilities(&self) -> &[Capability] {
        self.config.capabilities()
    }

    /// What its BARs are to the guest.
    pub fn bars(&self) -> Vec<BarInfo> {
        self.bars.info()
    }

    /// Its interrupts.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// Its interrupt pin, if it has a line that the guest can be given.
    pub fn pin(&self) -> Option<InterruptPin> {
        InterruptPin::from_register(self.config.interrupt_pin())
    }

    /// What is done with it.
    pub fn options(&self) -> PciOptions {
        self.options
    }

    /// What interrupts the guest at present.
    pub fn in_use(&self) -> InUse {
        self.interrupts.in_use()
    }

    /// Has every access to its BARs trap, and its interrupts' signals passed on by what this returns. Before it
    /// is attached.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors.
    #[cold]
    pub fn tap(&mut self) -> Result<FunctionTaps, FunctionError> {
        self.bars.unmap();
        self.interrupts.tap().map_err(|error| self.error(FunctionErrorKind::Irq(error)))
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
    /// It must not be dropped while the guest can run, unless it was taken back ([`RemovableFunction`](super::RemovableFunction)).
    ///
    /// # Errors
    ///
    /// If no interrupt of it can reach the guest.
    pub unsafe fn attach(
        &mut self,
        attachment: Attachment,
        gic: &dyn InterruptController,
    ) -> Result<(), FunctionError> {
        let Attachment { slot, slots, router } = attachment;
        self.touched = true;
        // SAFETY: passed on.
        unsafe { self.bars.map_through(slots) };
        self.bus = slot.bdf.bus();
        if slot.port.is_some() {
            self.config.put_behind_port();
        }
        self.interrupts.route(router, slot.bdf.requester_id(), &mut self.config);
        // As after power-up: VFIO has switched decoding on, and a guest that finds it so would have
        // the function decode addresses it has not given yet.
        self.write_command(0);
        match (self.interrupts.intx(), slot.intx) {
            (Some(line), Some(intx)) => line
                .connect(gic, intx.spi)
                .map_err(|error| self.error(FunctionErrorKind::Irq(error)))?,
            _ if self.interrupts.is_msi_hidden(&self.config) => {
                return Err(self.error(FunctionErrorKind::NoInterrupt));
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
    /// If it can't be reset. Bus mastering, and so DMA, is taken from it then, and by the kernel once its files
    /// are closed.
    pub fn release(&mut self) -> Result<Quiesced, FunctionError> {
        self.interrupts.disarm();
        if !std::mem::take(&mut self.touched) {
            return Ok(Quiesced::Disabled);
        }
        self.bars.forward(&[]);
        self.quiesce()
    }

    /// Has the guest lose it while that runs: stops its interrupts and DMA, and unmaps it. Whether nothing of
    /// it is mapped into the guest any more, so that it may be dropped.
    pub(super) fn give_up(&mut self) -> bool {
        self.interrupts.disarm();
        self.touched = false;
        self.bars.forward(&[]);
        self.end_bus_mastering();
        !self.bars.is_mapped()
    }

    /// The requests that its file takes.
    pub(super) fn calls(&self) -> &dyn DeviceCalls {
        &*self.calls
    }

    /// The guest writes `value` to the command register.
    fn write_command(&mut self, value: u16) {
        if value & COMMAND_MEMORY == 0 {
            // Before VFIO takes the memory away: a guest's access to it then is no one's.
            self.bars.forward(&[]);
        }
        self.config.write(COMMAND, &value.to_le_bytes());
        self.bars.registers.set_command(value);
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
            self.bars.forward(&[]);
        }
        self.config.write(offset, data);
        self.look_at_power(control);
    }

    /// Reads whether it is in D0 from its `control` register of power management.
    fn look_at_power(&mut self, control: u16) {
        let mut state = [0];
        self.config.read(control, &mut state);
        self.powered = state[0] & POWER_STATE == 0;
    }

    /// Where its control register of power management is, if the guest has that.
    fn power_control(&self) -> Option<u16> {
        self.config.find(capability::PM).map(|pm| pm.saturating_add(POWER_CONTROL))
    }

    /// The guest writes to a register that isn't a BAR's.
    fn write_register(&mut self, offset: u16, data: &[u8]) {
        if self.interrupts.write_config(offset, data) {
            return;
        }
        if offset & !3 == COMMAND {
            self.write_command_and_status(offset, data);
            return;
        }
        let power = self.power_control();
        match power.filter(|control| byte_at(*control, offset, data).is_some()) {
            Some(control) => self.write_power(control, offset, data),
            None if self.is_reset(offset, data) => self.reset_itself(offset, data),
            None => self.config.write(offset, data),
        }
    }
}

impl Function for PciFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        if Bars::covers(offset) {
            self.bars.registers.read(offset, data);
            return;
        }
        if !self.interrupts.read_config(offset, data) {
            self.config.read(offset, data);
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if Bars::covers(offset) {
            self.bars.registers.write(offset, data);
            return;
        }
        self.write_register(offset, data);
        if let Some(control) = self.power_control().filter(|_| !self.powered) {
            // The reset of another function may have brought it to D0 (`vfio_pci_dev_set_hot_reset`). The guest
            // reads that, and doesn't write it any more.
            self.look_at_power(control);
        }
    }

    fn decoded(&self) -> Vec<BarRange> {
        if self.powered { self.bars.registers.decoded() } else { Vec::new() }
    }

    fn decodes(&self, range: &BarRange) -> bool {
        self.powered && self.bars.registers.decodes(range)
    }

    fn forward(&mut self, ranges: &[BarRange]) {
        // As of now: another vCPU may have disabled memory since the bridge asked, and VFIO answers an
        // access to a mapping then with a fault that ends the guest.
        let mut ranges = ranges.to_vec();
        let now = self.decoded();
        ranges.retain(|range| now.contains(range));
        self.bars.forward(&ranges);
    }

    fn trap(&mut self) -> bool {
        self.bars.trap()
    }

    fn set_bus(&mut self, bus: u8) {
        if std::mem::replace(&mut self.bus, bus) != bus {
            // Behind a port there is device 0 alone, and function 0 of it.
            self.interrupts.set_requester(Bdf::from_devfn(bus, 0).requester_id());
        }
    }

    fn reset(&mut self) {
        self.reset_with_bus();
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if !self.interrupts.read_bar(bar, offset, data) {
            self.bars.read(bar, offset, data);
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if !self.interrupts.write_bar(bar, offset, data) {
            self.bars.write(bar, offset, data);
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

/// The function's MSI-X table and pending bits, also if its guest doesn't get MSI-X: the host uses
/// them.
fn msix_areas(config: &ConfigSpace) -> Vec<MsixArea> {
    let capabilities = config.capabilities().iter().filter(|c| c.id == capability::MSIX);
    let areas = capabilities.flat_map(|capability| {
        let dword = |at| config.snapshot().u32(capability.offset.saturating_add(at));
        let msix = Msix::new([dword(0), dword(4), dword(8)], 0);
        [msix.table(), msix.pending_bits()]
    });
    areas.collect()
}

#[cfg(test)]
mod tests;
