//! How a function is stopped: by the VMM, or by its guest, which has it reset itself.

use super::super::super::error_chain::chain;
use super::super::super::quiesce::Quiesced;
use super::super::super::uapi::{AffectedFunction, DeviceCalls, IoctlError};
use super::super::bus_reset::{BusReset, with_patience};
use super::super::capability::{self, CapabilityId, EXPRESS_FLAGS};
use super::super::error::{FunctionError, FunctionErrorKind};
use super::{PciFunction, byte_at};
use crate::irq::InterruptController;
use crate::pci::Intx;
use crate::pci::config::{COMMAND, COMMAND_MASTER};

/// Where functions can be told to reset themselves: the capability, the byte with the bit that says
/// that it can, that bit, the byte that starts it, that bit (PCI Express Base 5.0, 7.5.3.3, 7.5.3.4;
/// Advanced Capabilities for Conventional PCI ECN).
const RESETS: [(CapabilityId, u16, u8, u16, u8); 2] = [
    (capability::EXPRESS, 7, 1 << 4, 9, 1 << 7),
    (capability::ADVANCED_FEATURES, 3, 1 << 1, 4, 1 << 0),
];

/// Registers that drivers and the guest's kernel write, which VFIO restores after a reset or keeps beside the
/// function: of the header (cache line size with the latency timer, interrupt line with the pin, which is
/// read-only), and the control registers of PCI Express (PCI Local Bus 3.0, 6.1; PCI Express Base 5.0, 7.5.3).
const CACHE_LINE_SIZE: u16 = 0x0c;
const INTERRUPT_LINE: u16 = 0x3c;
const DEVICE_CONTROL: u16 = 0x08;
const DEVICE_CONTROL_2: u16 = 0x28;
/// Its bits that a function-level reset leaves (PCI Express Base 5.0, 6.6.2).
const MAX_PAYLOAD_SIZE: u16 = 7 << 5;

/// How VFIO can reset a function.
#[derive(Debug)]
pub(super) enum Reset {
    /// Without another one.
    ByItself,
    /// With its bus.
    WithBus(BusReset),
    /// Not at all, and why its bus can't be, if that is known.
    None(Option<String>),
}

impl PciFunction {
    /// Whether it is to be reset, and can't be by itself.
    pub fn needs_bus_reset(&self) -> bool {
        self.options.reset && !matches!(self.reset, Reset::ByItself)
    }

    /// Tells how it can be reset with its bus, or why not. For a function that can be reset by itself that
    /// changes nothing.
    pub fn set_bus_reset(&mut self, bus: Result<BusReset, String>) {
        if self.needs_bus_reset() {
            self.reset = bus.map_or_else(|why| Reset::None(Some(why)), Reset::WithBus);
        }
    }

    /// The functions that are reset with it, if it is reset with its bus.
    pub fn reset_with(&self) -> Option<&[String]> {
        match &self.reset {
            Reset::WithBus(bus) => Some(&bus.others),
            Reset::ByItself | Reset::None(_) => None,
        }
    }

    /// Why it can't be reset with its bus, if that is known.
    pub fn obstacle_to_bus_reset(&self) -> Option<&str> {
        match &self.reset {
            Reset::None(why) => why.as_deref(),
            Reset::ByItself | Reset::WithBus(_) => None,
        }
    }

    /// The functions that a reset of its bus resets, itself among them.
    ///
    /// # Errors
    ///
    /// As for [`DeviceCalls::hot_reset_info`].
    pub fn functions_of_bus(&self) -> Result<Vec<AffectedFunction>, IoctlError> {
        self.calls.hot_reset_info()
    }

    /// Stops whatever the function is doing, by VFIO's reset: of itself, else of its bus. Where neither can be,
    /// takes bus mastering and so DMA from it.
    ///
    /// # Errors
    ///
    /// If the reset fails.
    pub fn quiesce(&mut self) -> Result<Quiesced, FunctionError> {
        self.quiesce_by(BusReset::reset)
    }

    /// As [`quiesce`](Self::quiesce); a bus is reset by `reset_bus`.
    fn quiesce_by(
        &mut self,
        reset_bus: fn(&BusReset, &str, &dyn DeviceCalls) -> Result<(), IoctlError>,
    ) -> Result<Quiesced, FunctionError> {
        if !self.options.reset {
            return Ok(Quiesced::Disabled);
        }
        let (reset, quiesced) = match &self.reset {
            Reset::ByItself if self.of_server => (self.calls.reset(), Quiesced::ByReset),
            Reset::ByItself => (with_patience(|| self.calls.reset()), Quiesced::ByReset),
            Reset::WithBus(bus) => (reset_bus(bus, &self.name, &*self.calls), Quiesced::ByBusReset),
            Reset::None(why) => {
                let why = why.clone();
                return Ok(self.leave(why.as_deref()));
            }
        };
        let Err(source) = reset else { return Ok(quiesced) };
        // The host has taken another function of the bus back.
        if quiesced == Quiesced::ByBusReset && source.is(libc::EINVAL) {
            return Ok(self.leave(Some(
                "its bus can't be reset, of which a function isn't the guest's any more",
            )));
        }
        self.end_bus_mastering();
        let is_busy = source.is(libc::EAGAIN) || source.is(libc::EBUSY);
        let kind = match (self.of_server, is_busy) {
            (true, _) => FunctionErrorKind::ResetByServer,
            (false, true) => FunctionErrorKind::Busy,
            (false, false) => FunctionErrorKind::Reset,
        };
        Err(self.error(kind(source)))
    }

    /// Leaves it as it is but for bus mastering, and tells `why` its bus can't be reset, if that is known.
    #[cold]
    fn leave(&mut self, why: Option<&str>) -> Quiesced {
        let master = if self.end_bus_mastering() { "can't be turned off" } else { "is off" };
        if !std::mem::replace(&mut self.said, true) {
            let left = format!("but for bus mastering, which {master}, it is left as it is");
            match why {
                Some(why) => {
                    log::warn!("{}: VFIO has no reset for it alone, and {why}: {left}", self.name)
                }
                None => log::info!("{}: VFIO has no reset for it: {left}", self.name),
            }
        }
        Quiesced::Unsupported
    }

    /// Makes it as it was when the guest got it, for a guest that begins anew and runs not: its interrupts
    /// are stopped, then itself, and its registers are as after power-up. It is to be
    /// [armed](Self::arm) again.
    ///
    /// # Errors
    ///
    /// If it doesn't stop, or `gic` refuses its line.
    #[cold]
    pub fn restart(
        &mut self,
        gic: &dyn InterruptController,
        intx: Option<Intx>,
    ) -> Result<(), FunctionError> {
        self.interrupts.disarm();
        self.interrupts.reset();
        self.bars.forward(&[]);
        self.quiesce()?;
        self.come_up();
        if let (Some(line), Some(intx)) = (self.interrupts.intx(), intx) {
            line.reconnect(gic, intx.spi)
                .map_err(|error| self.error(FunctionErrorKind::Irq(error)))?;
        }
        Ok(())
    }

    /// The guest resets the bus that the function is on: it is reset, as it can be, and its registers are as
    /// after power-up (PCI Express Base 5.0, 6.6.1).
    #[cold]
    pub(super) fn reset_with_bus(&mut self) {
        self.interrupts.reset();
        self.bars.forward(&[]);
        if let Err(error) = self.quiesce_by(BusReset::reset_now) {
            self.interrupts
                .log()
                .error(format_args!("its guest resets its bus: {}", chain(&error)));
        }
        self.come_up();
    }

    /// Makes its registers as after power-up, once it has been reset.
    fn come_up(&mut self) {
        self.power_up();
        self.bars.registers.reset();
        self.write_command(0);
        self.restore_config();
    }

    /// Has it in D0, which what wasn't reset may not be.
    fn power_up(&mut self) {
        self.powered = true;
        if let Some(control) = self.power_control() {
            self.write_power(control, control, &[0]);
        }
    }

    /// Gives registers that a reset through VFIO leaves the value that they had when the function was
    /// opened.
    fn restore_config(&mut self) {
        let express = self.config.find(capability::EXPRESS).into_iter().flat_map(|place| {
            let version = self.config.snapshot().u8(place.saturating_add(EXPRESS_FLAGS)) & 0xf;
            let second = (version >= 2).then_some(DEVICE_CONTROL_2);
            [Some(DEVICE_CONTROL), second]
                .into_iter()
                .flatten()
                .map(move |at| place.saturating_add(at))
        });
        let halves: Vec<u16> =
            [CACHE_LINE_SIZE, INTERRUPT_LINE].into_iter().chain(express).collect();
        for at in halves {
            let value = self.config.snapshot().u16(at).to_le_bytes();
            self.config.write(at, &value);
        }
    }

    /// Takes bus mastering from the function, and answers whether it has it nevertheless.
    pub(super) fn end_bus_mastering(&mut self) -> bool {
        let mut command = [0; 2];
        self.config.read(COMMAND, &mut command);
        let value = u16::from_le_bytes(command) & !COMMAND_MASTER;
        self.config.write(COMMAND, &value.to_le_bytes());
        self.config.read(COMMAND, &mut command);
        // All ones: it isn't there any more.
        u16::from_le_bytes(command) & COMMAND_MASTER != 0 && command != [0xff; 2]
    }

    /// Whether the guest has the function reset itself by this write.
    pub(super) fn is_reset(&mut self, offset: u16, data: &[u8]) -> bool {
        RESETS.into_iter().any(|(id, able_at, able, start_at, start)| {
            let Some(place) = self.config.find(id) else { return false };
            let able = self.config.snapshot().u8(place.saturating_add(able_at)) & able != 0;
            let written = byte_at(place.saturating_add(start_at), offset, data);
            able && written.is_some_and(|byte| byte & start != 0)
        })
    }

    /// The guest has the function reset itself: its registers are as after power-up (PCI Express
    /// Base 5.0, 6.6.2).
    pub(super) fn reset_itself(&mut self, offset: u16, data: &[u8]) {
        self.bars.forward(&[]);
        self.interrupts.reset();
        let control = self.config.find(capability::EXPRESS);
        let control = control.map(|place| place.saturating_add(DEVICE_CONTROL));
        let mut before = [0; 2];
        control.iter().for_each(|at| self.config.read(*at, &mut before));
        // VFIO restores what the host needs, the command register too.
        self.config.write(offset, data);
        self.come_up();
        // The largest payload stays as it was.
        if let Some(at) = control {
            let kept = u16::from_le_bytes(before) & MAX_PAYLOAD_SIZE;
            let value = self.config.snapshot().u16(at) & !MAX_PAYLOAD_SIZE | kept;
            self.config.write(at, &value.to_le_bytes());
        }
    }
}
