//! What the host bridge asks of a function.

use std::ops::Range;

/// An address space of PCI (PCI Local Bus 3.0, 6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Memory, 32-bit or 64-bit; a bus address is a GPA.
    Memory,
    /// I/O ports.
    Io,
}

/// Where a base address register decodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Which register: 0 to 5; 6 is the expansion ROM's.
    pub bar: u8,
    /// Of which address space.
    pub space: Space,
    /// The bus addresses: of memory, GPAs.
    pub range: Range<u64>,
}

/// A PCI function behind the guest's host bridge.
///
/// It keeps its own configuration space, and maps into the guest by itself what can be reached
/// without traps of the windows it decodes. What traps comes here through the bridge.
pub trait Function: Send {
    /// Its name, for messages.
    fn name(&self) -> &str;

    /// The guest reads 1, 2 or 4 bytes of configuration space at `offset` (below 4096), aligned to
    /// their number.
    fn read_config(&mut self, offset: u16, data: &mut [u8]);

    /// The guest writes 1, 2 or 4 bytes of configuration space at `offset` (below 4096), aligned to
    /// their number. Where this changes what its registers decode, the function has remapped what
    /// it maps when this returns.
    fn write_config(&mut self, offset: u16, data: &[u8]);

    /// Where its registers decode at present: none while the command register's decoding is off.
    fn windows(&self) -> Vec<Window>;

    /// The guest reads 1, 2, 4 or 8 bytes at `offset` of a BAR, by a trap.
    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// The guest writes 1, 2, 4 or 8 bytes at `offset` of a BAR, by a trap.
    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]);
}
