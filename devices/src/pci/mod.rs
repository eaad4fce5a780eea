//! PCI Express as a guest sees it: a host bridge, its apertures, and the functions behind it.
//!
//! What implements a function (a device of the host through VFIO, one of another process through
//! vfio-user) is not known here: it is a [`Function`]. What no function can be trusted with is
//! emulated here: base address registers ([`Bars`]) and message-signalled interrupts ([`Msi`],
//! [`Msix`]) with their routes to the guest ([`MsiVectors`]).

mod address;
mod apertures;
mod bars;
mod bridge;
pub mod config;
mod mmio;
mod msi;
mod msix;
mod node;
mod root_port;
mod slots;
#[cfg(test)]
pub(crate) mod testing;
mod vectors;

pub use address::{AddressError, Bdf, InterruptPin};
pub use apertures::Apertures;
pub use bars::{AddressSpace, Bar, BarError, BarRange, Bars, ROM, rom_size};
pub use bridge::{Function, HostBridge};
pub use config::ConfigSnapshot;
pub use msi::Msi;
pub use msix::{Msix, MsixArea};
pub use node::{MsiController, host_node};
pub use root_port::RootPort;
pub use slots::{Intx, Slot, SlotAllocator, SlotError};
pub use vectors::{MsiState, MsiVectors};
