//! How a function is stopped: by the VMM, or by its guest, which has it reset itself.

use std::thread;
use std::time::Duration;

use super::super::super::quiesce::Quiesced;
use super::super::super::uapi::IoctlError;
use super::super::capability::{self, CapabilityId, EXPRESS_FLAGS};
use super::super::error::{FunctionError, FunctionErrorKind};
use super::{PciFunction, byte_at};
use crate::irq::InterruptController;
use crate::pci::Intx;
use crate::pci::config::{COMMAND, COMMAND_MASTER};

/// How often a reset is tried that the host has no time for, and how long is waited in between.
const RESET_TRIES: u32 = 20;
const RESET_PAUSE: Duration = Duration::from_millis(10);

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

impl PciFunction {
    /// Stops whatever the function is doing, by VFIO's reset. Where that can't be, takes bus mastering
    /// and so DMA from it.
    ///
    /// # Errors
    ///
    /// If the reset fails.
    pub fn quiesce(&mut self) -> Result<Quiesced, FunctionError> {
        if !self.options.reset {
            return Ok(Quiesced::Disabled);
        }
        if !self.can_reset {
            let master = if self.end_bus_mastering() { "can't be turned off" } else { "is off" };
            if !std::mem::replace(&mut self.said, true) {
                log::info!(
                    "{}: VFIO has no reset for it: but for bus mastering, which {master}, it is left \
                     as it is",
                    self.name
                );
            }
            return Ok(Quiesced::Unsupported);
        }
        let Err(source) = self.reset() else { return Ok(Quiesced::ByReset) };
        self.end_bus_mastering();
        let is_busy = source.is(libc::EAGAIN);
        let kind = if is_busy { FunctionErrorKind::Busy } else { FunctionErrorKind::Reset };
        Err(self.error(kind(source)))
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
        self.powered = true;
        self.bars.registers.reset();
        self.write_command(0);
        self.restore_config();
        if let (Some(line), Some(intx)) = (self.interrupts.intx(), intx) {
            line.reconnect(gic, intx.spi)
                .map_err(|error| self.error(FunctionErrorKind::Irq(error)))?;
        }
        Ok(())
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

    /// Resets it, with patience: while the host does something else to it, VFIO answers with `EAGAIN`
    /// (`pci_try_reset_function`).
    fn reset(&self) -> Result<(), IoctlError> {
        for _ in 0..RESET_TRIES {
            match self.calls.reset() {
                Err(error) if error.is(libc::EAGAIN) => thread::sleep(RESET_PAUSE),
                result => return result,
            }
        }
        self.calls.reset()
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
        // VFIO restores what the host needs, the command register too.
        self.config.write(offset, data);
        self.bars.registers.reset();
        self.write_command(0);
    }
}
