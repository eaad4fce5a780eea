//! PCI Express as a guest sees it: a host bridge, its windows, and the functions behind it.
//!
//! What is behind a function (a device of the host through VFIO, one of another process through
//! vfio-user) is not known here: it is a [`Function`]. What every function has, and none can be
//! trusted with, is modelled here: base address registers ([`Bars`]), message-signalled interrupts
//! ([`Msi`], [`Msix`]) and their way to the guest ([`Vectors`]).

mod address;
mod apertures;
mod bars;
mod bridge;
mod ecam;
mod function;
mod message;
mod msi;
mod msix;
mod node;
mod register;
mod seats;
#[cfg(test)]
pub(crate) mod testing;
mod vectors;
mod window;

pub use address::{AddressError, Bdf, Intx, Pin, Seat};
pub use apertures::Apertures;
pub use bars::{Bar, BarError, Bars};
pub use bridge::HostBridge;
pub use function::{Function, Space, Window};
pub use message::{Delivery, Effect};
pub use msi::Msi;
pub use msix::{Msix, TablePlace};
pub use seats::{Newcomer, SeatError, assign};
pub use vectors::Vectors;
