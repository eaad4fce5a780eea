//! Interrupts as devices see them: wires into the guest's interrupt controller.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// A shared peripheral interrupt of the guest's GIC.
///
/// Counted from 0 as device trees do (`interrupts = <0 N flags>`); its INTID is `32 + N`, and by
/// KVM's default GSI routing on arm64 its GSI is `N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spi(pub u32);

/// How an interrupt line signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Each signal is one interrupt (`IRQ_TYPE_EDGE_RISING`, 1).
    Edge,
    /// Asserted until the device is served (`IRQ_TYPE_LEVEL_HIGH`, 4).
    Level,
}

impl Trigger {
    /// The flags cell of an `interrupts` entry (`dt-bindings/interrupt-controller/irq.h`).
    pub fn dt_flags(self) -> u32 {
        match self {
            Self::Edge => 1,
            Self::Level => 4,
        }
    }
}

/// The guest's interrupt controller, as far as devices need it.
pub trait InterruptController {
    /// Makes every signal of `trigger` an edge on `spi`.
    ///
    /// # Errors
    ///
    /// What the hypervisor refused it with.
    fn connect_edge(&self, spi: Spi, trigger: &EventFd) -> io::Result<()>;

    /// Makes a signal of `trigger` assert `spi`, and the guest's end of interrupt deassert it and
    /// signal `resample`.
    ///
    /// # Errors
    ///
    /// What the hypervisor refused it with.
    fn connect_level(&self, spi: Spi, trigger: &EventFd, resample: &EventFd) -> io::Result<()>;
}
