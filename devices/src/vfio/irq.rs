//! A device's interrupt, from its line on the host to the guest's interrupt controller.
//!
//! Two halves: [`AssignedIrq::connect`] ties the eventfds to the guest's controller (an irqfd),
//! [`AssignedIrq::arm`] ties them to the host's line (VFIO) and comes last, when all else works.
//! From there the kernel does it all: the line rises, VFIO's handler masks it on the host
//! (AUTOMASKED) and signals the trigger eventfd; KVM asserts the SPI; the guest ends the interrupt;
//! KVM deasserts the SPI and signals the resample eventfd; VFIO unmasks the line, and if it is
//! still high all of this happens again.
//!
//! # Why no level interrupt is lost
//!
//! Between VFIO's masking and the guest's end of interrupt the line is deaf, so an interrupt that
//! never reaches that end is lost for good. It can't be lost
//!
//! - *before arming*: VFIO requests the line disabled (`IRQF_NO_AUTOEN`); a line that is high when
//!   `arm` enables it fires at once, for the host's controller looks at the level.
//! - *while arming*: the line is masked until the resample and the trigger eventfd are both there,
//!   so the first signal finds all of its way back. (A PCI function's line can't be masked then; of
//!   its first signal the way back is at worst found late.)
//! - *on the way to KVM*: the irqfd exists before VFIO signals it (and would notice a signal from
//!   before: `kvm_irqfd_assign` polls).
//! - *before the guest enables the SPI*: KVM keeps the level (`line_level`) whatever the guest does
//!   to the SPI in the meantime, and delivers it once enabled. If the guest's driver quenched the
//!   device before, that is one spurious interrupt whose end unmasks the line.
//! - *at the end of interrupt*: KVM lowers its level before it signals the resample eventfd, so a
//!   line that is still high comes back as a new level.
//!
//! The one before last holds only for an SPI that KVM takes for level-sensitive. Its reset state
//! is edge (`VGIC_CONFIG_EDGE`), in which the signal becomes a latch (`pending_latch`): it survives
//! the guest's setting `GICD_ICFGR` to level, but not a write to `GICD_ICPENDR`, and a guest that
//! leaves the reset value alone takes the interrupt as an edge, whose end KVM doesn't see. Either
//! would leave the line masked for ever. So whoever implements
//! [`InterruptController`] configures the SPIs of level interrupts as level-sensitive
//! (`KVM_DEV_ARM_VGIC_GRP_DIST_REGS`, `GICD_ICFGR`) before the guest runs and before they are armed.
//!
//! (Linux: `drivers/vfio/platform/vfio_platform_irq.c`, `virt/kvm/eventfd.c`,
//! `arch/arm64/kvm/vgic/{vgic,vgic-v3,vgic-mmio}.c`.)

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use boot::help::Help;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::remedy;
use super::uapi::{DeviceCalls, IoctlError, IrqAction};
use crate::irq::{InterruptController, Spi, Trigger};
use crate::ratelimit::LogLimit;

/// An interrupt that can't be handed to the guest.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// VFIO doesn't say what it is.
    #[error("interrupt {index} can't be looked at")]
    Info {
        /// Its index with VFIO.
        index: u32,
        /// What VFIO refused.
        #[source]
        source: IoctlError,
    },
    /// It can't signal an eventfd.
    #[error("interrupt {index} can't signal an eventfd")]
    NoEventFd {
        /// Its index with VFIO.
        index: u32,
    },
    /// No eventfd could be made.
    #[error("no eventfd for interrupt {index}")]
    EventFd {
        /// Its index with VFIO.
        index: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The guest's controller refused it.
    #[error("interrupt {index} can't be connected to the guest's SPI {}", spi.0)]
    Connect {
        /// Its index with VFIO.
        index: u32,
        /// The SPI.
        spi: Spi,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// VFIO refused to deliver it.
    #[error("interrupt {index} can't be armed: {action}")]
    Arm {
        /// Its index with VFIO.
        index: u32,
        /// What was tried.
        action: &'static str,
        /// What VFIO refused.
        #[source]
        source: IoctlError,
    },
}

impl Help for IrqError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Arm { source, .. } if source.is(libc::EBUSY) => Some(
                "the line is probably shared with another driver of the host: see /proc/interrupts"
                    .to_owned(),
            ),
            Self::EventFd { .. } => Some(remedy::OPEN_FILES.to_owned()),
            _ => None,
        }
    }
}

/// How the interrupt's signals travel.
#[derive(Debug)]
enum Path {
    Edge,
    Level {
        /// Signalled at the guest's end of interrupt.
        resample: EventFd,
    },
    /// A level of a PCI function: VFIO knows nothing of it before it has an eventfd.
    Intx {
        /// Signalled at the guest's end of interrupt.
        resample: EventFd,
    },
}

impl Path {
    fn resample(&self) -> Option<&EventFd> {
        match self {
            Self::Edge => None,
            Self::Level { resample } | Self::Intx { resample } => Some(resample),
        }
    }
}

/// An interrupt of an assigned device; disarmed when dropped.
#[derive(Debug)]
pub struct AssignedIrq {
    device: Arc<dyn DeviceCalls>,
    index: u32,
    /// Signalled when the line rises.
    trigger: EventFd,
    path: Path,
    armed: bool,
    log: LogLimit,
}

impl AssignedIrq {
    /// The interrupt of this index: a level if the host masks it each time (AUTOMASKED), else an
    /// edge.
    ///
    /// # Errors
    ///
    /// If there is none, or it can't signal eventfds.
    pub fn open(device: Arc<dyn DeviceCalls>, index: u32) -> Result<Self, IrqError> {
        let info = device.irq_info(index).map_err(|source| IrqError::Info { index, source })?;
        if !info.eventfd || info.count == 0 {
            return Err(IrqError::NoEventFd { index });
        }
        let eventfd = || {
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                .map_err(|source| IrqError::EventFd { index, source })
        };
        let path = if info.automasked { Path::Level { resample: eventfd()? } } else { Path::Edge };
        let log = LogLimit::named(format!("interrupt {index}"));
        Ok(Self { index, trigger: eventfd()?, path, armed: false, device, log })
    }

    /// The interrupt line of a PCI function (`VFIO_PCI_INTX_IRQ_INDEX`).
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_intx(device: Arc<dyn DeviceCalls>) -> Result<Self, IrqError> {
        let mut irq = Self::open(device, 0)?;
        irq.path = match std::mem::replace(&mut irq.path, Path::Edge) {
            Path::Level { resample } => Path::Intx { resample },
            edge => edge,
        };
        Ok(irq)
    }

    /// How it signals.
    pub fn trigger(&self) -> Trigger {
        match self.path {
            Path::Edge => Trigger::Edge,
            Path::Level { .. } | Path::Intx { .. } => Trigger::Level,
        }
    }

    /// Whether the host lets it through.
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// Its eventfds, for those who look at their counts: the one that VFIO signals, and the one that
    /// KVM signals at the guest's end of a level interrupt.
    pub fn eventfds(&self) -> (RawFd, Option<RawFd>) {
        (self.trigger.as_raw_fd(), self.path.resample().map(AsRawFd::as_raw_fd))
    }

    /// Connects it to the guest's interrupt controller, which must be complete.
    ///
    /// # Errors
    ///
    /// What the controller refused it with.
    pub fn connect(&self, gic: &dyn InterruptController, spi: Spi) -> Result<(), IrqError> {
        match self.path.resample() {
            None => gic.connect_edge(spi, &self.trigger),
            Some(resample) => gic.connect_level(spi, &self.trigger, resample),
        }
        .map_err(|source| IrqError::Connect { index: self.index, spi, source })
    }

    /// Lets the host's line through. What was done is undone if a step fails.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn arm(&mut self) -> Result<(), IrqError> {
        let trigger = IrqAction::SetTrigger(&self.trigger);
        // Each step, and what undoes it.
        let steps: &[(&str, IrqAction<'_>, Option<IrqAction<'_>>)] = match &self.path {
            Path::Edge => &[("set its eventfd", trigger, Some(IrqAction::ClearTrigger))],
            // Masked at first: the line may be high, and its first signal must find the way back.
            Path::Level { resample } => &[
                ("mask it", IrqAction::Mask, Some(IrqAction::Unmask)),
                (
                    "set its unmask eventfd",
                    IrqAction::SetUnmask(resample),
                    Some(IrqAction::ClearUnmask),
                ),
                ("set its eventfd", trigger, Some(IrqAction::ClearTrigger)),
                ("unmask it", IrqAction::Unmask, None),
            ],
            // Only with an eventfd can it be told how to be unmasked. An end of interrupt in between
            // is in the other eventfd, at whose count VFIO looks (`vfio_virqfd_enable`).
            Path::Intx { resample } => &[
                ("set its eventfd", trigger, Some(IrqAction::ClearTrigger)),
                ("set its unmask eventfd", IrqAction::SetUnmask(resample), None),
            ],
        };
        for (done, (what, action, _)) in steps.iter().enumerate() {
            if let Err(source) = self.device.set_irq(self.index, *action) {
                let undo = steps.iter().take(done).rev().filter_map(|(_, _, undo)| *undo);
                undo.for_each(|action| self.try_to(action));
                return Err(IrqError::Arm { index: self.index, action: what, source });
            }
        }
        self.armed = true;
        Ok(())
    }

    /// Disables the host's line. Nothing if it isn't armed.
    pub fn disarm(&mut self) {
        if !std::mem::take(&mut self.armed) {
            return;
        }
        self.try_to(IrqAction::ClearTrigger);
        if matches!(self.path, Path::Level { .. }) {
            self.try_to(IrqAction::ClearUnmask);
        }
    }

    fn try_to(&self, action: IrqAction<'_>) {
        if let Err(error) = self.device.set_irq(self.index, action) {
            self.log.error(format_args!("can't {action}: {error}: {}", error.source));
        }
    }
}

impl Drop for AssignedIrq {
    fn drop(&mut self) {
        self.disarm();
    }
}

#[cfg(test)]
mod tests;
