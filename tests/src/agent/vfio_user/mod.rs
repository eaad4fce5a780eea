//! A PCI device that this process serves to a VMM over vfio-user, and the program that drives it in
//! a guest.
//!
//! The server is the `vfio_user` crate's, an implementation of the protocol that shares nothing with
//! strait's; [`proxy`] has it behave as libvfio-user does. The device copies memory, and has an interrupt
//! line, MSI-X, registers and memory.

mod config;
mod dma;
mod drive;
mod proxy;
mod server;

pub(crate) use drive::{by_line, copy, drive, look, wrong};
pub(crate) use server::serve;

/// Its registers, in BAR 0.
pub(crate) mod register {
    /// Reads as [`super::IDENTITY`].
    pub(crate) const IDENTITY: u64 = 0x00;
    /// Keeps what is written.
    pub(crate) const SCRATCH: u64 = 0x04;
    /// Where a copy reads (bus address, 64 bits).
    pub(crate) const SOURCE: u64 = 0x08;
    /// Where it writes (bus address, 64 bits).
    pub(crate) const DESTINATION: u64 = 0x10;
    /// How many bytes.
    pub(crate) const LENGTH: u64 = 0x18;
    /// Written: copies, and then signals this MSI-X vector, or the line if MSI-X is off.
    pub(crate) const GO: u64 = 0x1c;
    /// What came of the last copy: [`super::DONE`] or [`super::FAULT`].
    pub(crate) const STATUS: u64 = 0x20;
    /// 1 while the line is asserted; written: deasserts it.
    pub(crate) const LINE: u64 = 0x24;
    /// How many copies were made.
    pub(crate) const COUNT: u64 = 0x28;
    /// Written: goes wrong in this way, see `Wrong` of the server.
    pub(crate) const WRONG: u64 = 0x2c;
}

/// What the identity register reads as.
pub(crate) const IDENTITY: u32 = 0x7365_7276;
/// A copy that was made.
pub(crate) const DONE: u32 = 1;
/// A copy that wasn't, since an address is nobody's.
pub(crate) const FAULT: u32 = 2;

/// Vendor and device: of no driver.
pub(crate) const VENDOR_DEVICE: u32 = 0x7573_1b36;
/// MSI-X vectors.
pub(crate) const VECTORS: u16 = 4;
/// The size of BAR 0, its registers, in bytes.
pub(crate) const REGISTERS_SIZE: u64 = 0x1000;
/// The size of BAR 2, memory that the client can map, in bytes.
pub(crate) const MEMORY_SIZE: u64 = 0x4000;
/// The size of BAR 4, which holds the MSI-X table, in bytes.
pub(crate) const TABLE_SIZE: u64 = 0x1000;
