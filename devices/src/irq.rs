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

/// A level-triggered interrupt line of a device that is emulated; changed from any thread.
pub trait Line: Send {
    /// Makes the line high or low.
    fn set(&self, high: bool);
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

/// A message-signalled interrupt as a PCI function sends it: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The doorbell that the guest chose (GPA): with GICv3, an ITS's `GITS_TRANSLATER`.
    pub address: u64,
    /// What is written: with GICv3, the EventID.
    pub data: u32,
    /// Who writes: the DeviceID, which `msi-map` of the host bridge's node makes the function's
    /// requester ID (bus, device and function).
    pub requester: u32,
}

/// A message that is routed to the guest's interrupt controller, by its GSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route(pub u32);

/// The guest's interrupt controller as far as message-signalled interrupts need it. The guest
/// changes messages while it runs, so this is called from vCPU threads.
pub trait MessageRouter: Send + Sync {
    /// Makes every signal of `trigger` this message; those that came before are one.
    ///
    /// # Errors
    ///
    /// What the hypervisor refused it with; `StorageFull` when there are no more routes.
    fn connect(&self, trigger: &EventFd, message: Message) -> io::Result<Route>;

    /// Changes what the signals of a connected trigger are. Signals meanwhile are the one or the
    /// other.
    ///
    /// # Errors
    ///
    /// What the hypervisor refused it with; the route is as it was.
    fn redirect(&self, route: Route, message: Message) -> io::Result<()>;

    /// Undoes [`connect`](Self::connect): signals of `trigger` are no messages any more, but are
    /// counted. Each signal is either a message or counted.
    fn disconnect(&self, route: Route, trigger: &EventFd);
}
