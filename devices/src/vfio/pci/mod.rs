//! An assigned PCI function.
//!
//! It knows VFIO's calls and nothing of sysfs: what is behind them may be a device of the host or
//! one of another process. The VMM's part, in this order:
//!
//! 1. while planning: [`PciFunction::open`]. What the function has is known then.
//! 2. while building, before guest RAM is mapped for DMA: [`quiesce`](PciFunction::quiesce).
//! 3. [`attach`](PciFunction::attach) once the guest's interrupt controller is complete; the host
//!    bridge has it as a [`Function`](crate::pci::Function) from here on.
//! 4. last before the guest runs: [`arm`](PciFunction::arm).
//! 5. when no vCPU runs any more: [`release`](PciFunction::release), before RAM is unmapped.
//!
//! In between the host may take it back ([`RemovableFunction`]).
//!
//! What the guest sees is in part the function's own (through VFIO, which guards what could harm the
//! host) and in part kept here: base address registers, messages, and capabilities that can't work
//! in a guest ([`capability`]). Its DMA reaches RAM and nothing else, no other function's BARs
//! either, and only while the guest's command register lets it master the bus.

mod bars;
mod bus_reset;
pub mod capability;
mod config;
mod error;
mod function;
mod interrupts;
mod msi;
mod removable;
mod tap;

pub use bars::BarInfo;
pub use bus_reset::{BusReset, StoppedByBus};
pub use config::{CONFIG_REGION, ConfigError};
pub use error::{FunctionError, FunctionErrorKind};
pub use function::{Attachment, PciFunction, PciOptions};
pub use interrupts::{InUse, Interrupts};
pub use removable::{Loss, RemovableFunction};
pub use tap::{FunctionTaps, VectorTap};
