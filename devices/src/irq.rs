//! Interrupts as devices see them: traits over the guest's interrupt controller.

use std::io;

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

/// The INTID of SPI 0 (Arm GIC Architecture Specification, IHI 0069, 2.2.1).
pub const FIRST_SPI: u32 = 32;

/// A shared peripheral interrupt of the guest's GIC.
///
/// Counted from 0 as device trees do (`interrupts = <0 N flags>`); its INTID is `32 + N`, and by
/// KVM's default GSI routing on arm64 its GSI is `N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spi(pub u32);

/// How an interrupt line signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
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

/// The level-triggered interrupt line of an emulated device; may be changed from any thread.
pub trait IrqLine: Send {
    /// Asserts or deasserts the line.
    fn set(&self, high: bool);
}

/// Edge-triggered interrupts that have no line of their own; signalled from any thread.
pub trait EdgeInterrupts: Send + Sync {
    /// Makes an edge on an SPI.
    fn pulse(&self, spi: Spi);
}

/// Connects eventfds to the guest's wired interrupts (SPIs).
pub trait InterruptController {
    /// Makes each signal of `trigger` an edge on `spi`.
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal.
    fn connect_edge(&self, spi: Spi, trigger: &EventFd) -> io::Result<()>;

    /// Makes a signal of `trigger` assert `spi`, and the guest's end of interrupt deassert it and
    /// signal `resample`.
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal.
    fn connect_level(&self, spi: Spi, trigger: &EventFd, resample: &EventFd) -> io::Result<()>;

    /// Undoes either: when this returns no signal is on its way, and a level is low.
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal.
    fn disconnect(&self, spi: Spi, trigger: &EventFd) -> io::Result<()>;
}

/// A message-signalled interrupt as a PCI function sends it: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// The doorbell that the guest chose (GPA): with GICv3, an ITS's `GITS_TRANSLATER`; with GICv2,
    /// a GICv2m frame's `MSI_SETSPI_NS`.
    pub address: u64,
    /// What is written: with GICv3, the EventID; with GICv2, the INTID of an SPI.
    pub data: u32,
    /// The DeviceID, which `msi-map` of the host bridge's node makes the function's requester ID
    /// (bus, device and function).
    pub requester: u32,
}

/// The number of an MSI route of the hypervisor (a GSI of KVM's routing table).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gsi(pub u32);

/// Routes eventfds to the guest's interrupt controller as message-signalled interrupts. The guest
/// changes messages while it runs, so vCPU threads call this.
pub trait MsiRouter: Send + Sync {
    /// Makes each signal of `trigger` this message; signals from before count as one.
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal; `StorageFull` when there are no more routes, `InvalidInput` for a
    /// message that nothing takes.
    fn connect(&self, trigger: &EventFd, message: MsiMessage) -> io::Result<Gsi>;

    /// Changes the message of a route. A signal meanwhile becomes the old or the new message.
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect); the route is unchanged then.
    fn redirect(&self, gsi: Gsi, message: MsiMessage) -> io::Result<()>;

    /// Undoes [`connect`](Self::connect): signals of `trigger` accumulate in its count from here
    /// on. Each signal is either sent as a message or counted.
    fn disconnect(&self, gsi: Gsi, trigger: &EventFd);
}
