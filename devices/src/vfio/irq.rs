//! An assigned device's interrupt, from its line on the host to the guest's interrupt controller.
//!
//! Two halves: [`AssignedIrq::connect`] ties the eventfds to the guest's controller (an irqfd),
//! [`AssignedIrq::arm`] ties them to the host's line (VFIO) and comes last, when all else works.
//! From then on the kernel does everything: the line rises, VFIO's handler masks it on the host
//! (AUTOMASKED) and signals the trigger eventfd; KVM asserts the SPI; the guest ends the interrupt;
//! KVM deasserts the SPI and signals the resample eventfd; VFIO unmasks the line, and if it is
//! still high all of this happens again.
//!
//! # Why no level interrupt is lost
//!
//! Between VFIO's masking and the guest's end of interrupt the line is masked, so an interrupt that
//! never reaches that end is lost for good. It can't be lost
//!
//! - *before arming*: VFIO requests the line disabled (`IRQF_NO_AUTOEN`); a line that is high when
//!   `arm` enables it fires at once, for the host's controller looks at the level.
//! - *while arming*: the line is masked until the resample and the trigger eventfd are both there,
//!   so that the end of the first interrupt unmasks it. (A PCI function's line can't be masked then;
//!   if its first interrupt ends before the resample eventfd is set, setting it unmasks the line.)
//! - *before KVM injects it*: the irqfd exists before VFIO signals it (and would notice a signal from
//!   before: `kvm_irqfd_assign` polls).
//! - *before the guest enables the SPI*: KVM keeps the level (`line_level`) whatever the guest does
//!   to the SPI in the meantime, and delivers it once enabled. If the guest's driver has cleared the
//!   device's interrupt by then, that is one spurious interrupt whose end unmasks the line.
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
//! # An interrupt that is watched
//!
//! The kernel tells nobody of a signal that it passes on, so whoever wants to see each one has to pass it on:
//! [`AssignedIrq::tap`] gives the host's side eventfds of its own, and its [`IrqTap`] moves signals between
//! them and the guest's. The order above stays: the line is masked until the guest's end of interrupt has
//! been passed on, too, and what isn't passed on yet stays in an eventfd's count. Edges that come meanwhile
//! are one, as they are at the guest's controller before it takes the first.
//!
//! (Linux: `drivers/vfio/platform/vfio_platform_irq.c`, `virt/kvm/eventfd.c`,
//! `arch/arm64/kvm/vgic/{vgic,vgic-v3,vgic-mmio}.c`.)

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use boot::help::Help;
use vfio_bindings::bindings::vfio::VFIO_PCI_INTX_IRQ_INDEX;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::remedy;
use super::uapi::{DeviceCalls, IoctlError, IrqAction};
use crate::irq::{InterruptController, Spi, Trigger};
use crate::ratelimit::LogLimit;

/// Why an interrupt, of this VFIO index, can't be assigned.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// VFIO doesn't describe it.
    #[error("VFIO doesn't describe interrupt {0}")]
    Info(u32, #[source] IoctlError),
    /// It can't signal an eventfd.
    #[error("interrupt {0} can't signal an eventfd")]
    NoEventFd(u32),
    /// No eventfd could be created.
    #[error("no eventfd for interrupt {0}")]
    EventFd(u32, #[source] io::Error),
    /// The guest's interrupt controller refused it.
    #[error("interrupt {0} can't be connected to the guest's SPI {spi}", spi = .1.0)]
    Connect(u32, Spi, #[source] io::Error),
    /// VFIO refused a step of arming it.
    #[error("interrupt {0} can't be armed: can't {1}")]
    Arm(u32, String, #[source] IoctlError),
}

impl Help for IrqError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Arm(_, _, error) if error.is(libc::EBUSY) => Some(
                "the line is probably shared with another driver of the host: see /proc/interrupts"
                    .to_owned(),
            ),
            Self::EventFd(_, error) => remedy::host_refused(error),
            _ => None,
        }
    }
}

/// An interrupt of an assigned device; disarmed when dropped.
#[derive(Debug)]
pub struct AssignedIrq {
    device: Arc<dyn DeviceCalls>,
    index: u32,
    /// Signalled when the line rises: the guest's side.
    trigger: Arc<EventFd>,
    /// Of a level: signalled at the guest's end of interrupt.
    resample: Option<Arc<EventFd>>,
    /// The same two of the host's side, where somebody passes signals on.
    tapped: Option<(Arc<EventFd>, Option<Arc<EventFd>>)>,
    /// The line of a PCI function, which VFIO can't mask before it has the first eventfd.
    is_intx: bool,
    armed: bool,
    log: LogLimit,
}

/// What passes the signals of an interrupt on, and so sees each of them.
#[derive(Debug)]
pub struct IrqTap {
    /// Signalled when the line rises.
    fired: Arc<EventFd>,
    trigger: Arc<EventFd>,
    /// Of a level: signalled at the guest's end of interrupt, and what VFIO unmasks the line by.
    ended: Option<(Arc<EventFd>, Arc<EventFd>)>,
}

impl IrqTap {
    /// What is to be polled: for the line's rising, and, of a level, for the guest's end of interrupt.
    pub fn polled(&self) -> (&EventFd, Option<&EventFd>) {
        (&self.fired, self.ended.as_ref().map(|(resample, _)| &**resample))
    }

    /// Passes on that the line has risen, if it has; `note` is told first, how often it did.
    pub fn pass_fired(&self, note: impl FnOnce(u64)) {
        pass(&self.fired, &self.trigger, note);
    }

    /// Passes on that the guest has ended the interrupt, if it has; `note` is told first.
    pub fn pass_ended(&self, note: impl FnOnce()) {
        if let Some((resample, unmask)) = &self.ended {
            pass(resample, unmask, |_| note());
        }
    }
}

/// Moves the signals from one eventfd to another, as one.
fn pass(from: &EventFd, to: &EventFd, note: impl FnOnce(u64)) {
    if let Ok(count) = from.read() {
        note(count);
        // It can't be full: the kernel takes each signal at once.
        let _ = to.write(1);
    }
}

/// A new eventfd for the interrupt of this index.
fn eventfd(index: u32) -> Result<Arc<EventFd>, IrqError> {
    let made = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    made.map(Arc::new).map_err(|error| IrqError::EventFd(index, error))
}

impl AssignedIrq {
    /// The interrupt of this index: a level if the host masks it each time (AUTOMASKED), else an
    /// edge.
    ///
    /// # Errors
    ///
    /// If there is none, or it can't signal eventfds.
    pub fn open(device: Arc<dyn DeviceCalls>, index: u32) -> Result<Self, IrqError> {
        let info = device.irq_info(index).map_err(|error| IrqError::Info(index, error))?;
        if !info.eventfd || info.count == 0 {
            return Err(IrqError::NoEventFd(index));
        }
        Ok(Self {
            trigger: eventfd(index)?,
            resample: info.automasked.then(|| eventfd(index)).transpose()?,
            tapped: None,
            device,
            index,
            is_intx: false,
            armed: false,
            log: LogLimit::named(format!("interrupt {index}")),
        })
    }

    /// The interrupt line of a PCI function (`VFIO_PCI_INTX_IRQ_INDEX`).
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_intx(device: Arc<dyn DeviceCalls>) -> Result<Self, IrqError> {
        let mut irq = Self::open(device, VFIO_PCI_INTX_IRQ_INDEX)?;
        irq.is_intx = true;
        Ok(irq)
    }

    /// Has its signals passed on by what this returns, before it is armed.
    ///
    /// # Errors
    ///
    /// There are no more eventfds.
    #[cold]
    pub fn tap(&mut self) -> Result<IrqTap, IrqError> {
        let fired = eventfd(self.index)?;
        let unmask = self.resample.as_ref().map(|_| eventfd(self.index)).transpose()?;
        self.tapped = Some((fired.clone(), unmask.clone()));
        Ok(IrqTap {
            fired,
            trigger: self.trigger.clone(),
            ended: self.resample.clone().zip(unmask),
        })
    }

    /// The eventfds that VFIO has: the one that it signals, and the one by which it unmasks the line.
    fn of_host(&self) -> (&EventFd, Option<&EventFd>) {
        match &self.tapped {
            Some((fired, unmask)) => (fired, unmask.as_deref()),
            None => (&self.trigger, self.resample.as_deref()),
        }
    }

    /// How it signals.
    pub fn trigger(&self) -> Trigger {
        if self.resample.is_some() { Trigger::Level } else { Trigger::Edge }
    }

    /// Whether it is armed on the host.
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// Its eventfds, whose counts interrupt statistics sample: the one that VFIO signals, and the one
    /// that KVM signals at the guest's end of a level interrupt.
    pub fn eventfds(&self) -> (RawFd, Option<RawFd>) {
        (self.trigger.as_raw_fd(), self.resample.as_ref().map(|resample| resample.as_raw_fd()))
    }

    /// Connects it to the guest's interrupt controller, which must be complete.
    ///
    /// # Errors
    ///
    /// What the controller refused it with.
    pub fn connect(&self, gic: &dyn InterruptController, spi: Spi) -> Result<(), IrqError> {
        match &self.resample {
            None => gic.connect_edge(spi, &self.trigger),
            Some(resample) => gic.connect_level(spi, &self.trigger, resample),
        }
        .map_err(|error| IrqError::Connect(self.index, spi, error))
    }

    /// Connects it anew, while it isn't armed: what was signalled before is forgotten, and its line is low.
    ///
    /// # Errors
    ///
    /// As from [`connect`](Self::connect).
    #[cold]
    pub fn reconnect(&self, gic: &dyn InterruptController, spi: Spi) -> Result<(), IrqError> {
        gic.disconnect(spi, &self.trigger)
            .map_err(|error| IrqError::Connect(self.index, spi, error))?;
        // Only clears them; there may be nothing to clear.
        let (fired, unmask) = self.of_host();
        let own = [Some(&*self.trigger), self.resample.as_deref()];
        for event in own.into_iter().chain([Some(fired), unmask]).flatten() {
            let _ = event.read();
        }
        self.connect(gic, spi)
    }

    /// Arms it on the host. What was done is undone if a step fails.
    ///
    /// # Errors
    ///
    /// What VFIO refused.
    pub fn arm(&mut self) -> Result<(), IrqError> {
        let (fired, unmask) = self.of_host();
        let trigger = IrqAction::SetTrigger(fired);
        let steps: &[IrqAction<'_>] = match unmask {
            None => &[trigger],
            // Masked at first: the line may be high, and the end of its first interrupt must unmask it.
            Some(resample) if !self.is_intx => {
                &[IrqAction::Mask, IrqAction::SetUnmask(resample), trigger, IrqAction::Unmask]
            }
            // VFIO takes the unmask eventfd only once it has the other. An end of interrupt in between
            // is in the unmask eventfd's count, which VFIO polls (`vfio_virqfd_enable`).
            Some(resample) => &[trigger, IrqAction::SetUnmask(resample)],
        };
        for (done, action) in steps.iter().enumerate() {
            if let Err(error) = self.device.set_irq(self.index, *action) {
                let undo = steps.iter().take(done).rev().filter_map(undo);
                undo.for_each(|action| self.try_to(action));
                return Err(IrqError::Arm(self.index, action.to_string(), error));
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
        if self.resample.is_some() && !self.is_intx {
            self.try_to(IrqAction::ClearUnmask);
        }
    }

    fn try_to(&self, action: IrqAction<'_>) {
        if let Err(error) = self.device.set_irq(self.index, action) {
            self.log.error(format_args!("can't {action}: {error}: {}", error.source));
        }
    }
}

/// What undoes a step of arming.
fn undo(action: &IrqAction<'_>) -> Option<IrqAction<'static>> {
    match action {
        IrqAction::SetTrigger(_) => Some(IrqAction::ClearTrigger),
        IrqAction::SetUnmask(_) => Some(IrqAction::ClearUnmask),
        IrqAction::Mask => Some(IrqAction::Unmask),
        IrqAction::ClearTrigger | IrqAction::ClearUnmask | IrqAction::Unmask => None,
    }
}

impl Drop for AssignedIrq {
    fn drop(&mut self) {
        self.disarm();
    }
}

#[cfg(test)]
mod tests;
