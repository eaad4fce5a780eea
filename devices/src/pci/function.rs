//! What the host bridge asks of a function.

use std::ops::Range;

/// An address space of PCI (PCI Local Bus 3.0, 6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
/// It keeps its own configuration space and says where its registers decode; the guest may have
/// them decode anywhere. The bridge decides which of these windows it forwards, and only those may
/// the function map into the guest: see [`forward`](Self::forward). What traps comes here through
/// the bridge.
pub trait Function: Send {
    /// Its name, for messages.
    fn name(&self) -> &str;

    /// The guest reads 1, 2 or 4 bytes of configuration space at `offset` (below 4096), aligned to
    /// their number.
    fn read_config(&mut self, offset: u16, data: &mut [u8]);

    /// The guest writes 1, 2 or 4 bytes of configuration space at `offset` (below 4096), aligned to
    /// their number. Afterwards the bridge asks for the [`windows`](Self::windows), and if they have
    /// changed it [forwards](Self::forward) anew, before the guest's write is done.
    fn write_config(&mut self, offset: u16, data: &[u8]);

    /// Where its registers decode at present: none while the command register's decoding is off.
    fn windows(&self) -> Vec<Window>;

    /// Whether it decodes this window at present: as one of [`windows`](Self::windows), asked at
    /// every trapped access.
    fn decodes(&self, window: &Window) -> bool {
        self.windows().contains(window)
    }

    /// From here on the bridge forwards these windows, some or all of [`windows`](Self::windows).
    /// What can be reached without traps of them is mapped into the guest when this returns, and
    /// nothing else is.
    ///
    /// Not forwarded is what lies outside the bridge's own windows (on RAM, on the interrupt
    /// controller, on another device), or over another function's window or another BAR.
    fn forward(&mut self, windows: &[Window]);

    /// Lets all accesses trap that don't, until it is to [forward](Self::forward) something else: the
    /// host can't give the guest what is mapped. Answers whether anything was.
    fn trap(&mut self) -> bool;

    /// The guest reads 1, 2, 4 or 8 bytes at `offset` of a BAR, by a trap. They lie within the BAR's
    /// size, at any alignment.
    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// The guest writes 1, 2, 4 or 8 bytes at `offset` of a BAR, by a trap. They lie within the
    /// BAR's size, at any alignment.
    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]);
}
