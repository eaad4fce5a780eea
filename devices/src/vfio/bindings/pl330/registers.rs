//! The registers: offsets in bytes from the device's base, all of 32 bits.
//!
//! Named as in the TRM (ARM DDI 0424), chapter 3, "Register summary" and "Register descriptions".

/// DMA Manager Status Register: the manager's state in bits 3:0.
pub(super) const DSR: u64 = 0x000;
/// Interrupt Enable Register: an event raises its interrupt (1), or wakes threads that wait for it
/// (0).
pub(super) const INTEN: u64 = 0x020;
/// Event-Interrupt Raw Status Register: events that happened.
pub(super) const INT_EVENT_RIS: u64 = 0x024;
/// Interrupt Status Register: interrupts that are high.
pub(super) const INTMIS: u64 = 0x028;
/// Interrupt Clear Register: lowers interrupts, of those enabled in [`INTEN`].
pub(super) const INTCLR: u64 = 0x02c;
/// Debug Status Register: bit 0 is set while an instruction of the debug registers runs.
pub(super) const DBGSTATUS: u64 = 0xd00;
/// Debug Command Register: writing 0 runs the instruction in the two below.
pub(super) const DBGCMD: u64 = 0xd04;
/// Debug Instruction-0 Register: the thread, and the instruction's first two bytes.
pub(super) const DBGINST0: u64 = 0xd08;
/// Debug Instruction-1 Register: the instruction's other bytes.
pub(super) const DBGINST1: u64 = 0xd0c;
/// Configuration Register 0: how many channels and events there are.
pub(super) const CR0: u64 = 0xe00;
/// Channel Status Registers: a channel's state in bits 3:0.
pub(super) fn csr(channel: u8) -> u64 {
    0x100 + u64::from(channel) * 8
}

/// How many channels there are, from [`CR0`] bits 6:4.
pub(super) fn channels(cr0: u32) -> u8 {
    let [low, ..] = cr0.to_le_bytes();
    (low >> 4 & 0x7) + 1
}

/// A bit for each event there is, from [`CR0`] bits 21:17.
pub(super) fn events(cr0: u32) -> u32 {
    let last = cr0 >> 17 & 0x1f;
    u32::MAX >> (31 - last)
}

/// What a thread does, from bits 3:0 of [`DSR`] or [`csr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing; a program may be started.
    Stopped,
    /// It is on its way to `Stopped` or `Faulting` by itself: killing, completing, or faulting and
    /// completing.
    Ending,
    /// It runs a program, or waits within one.
    Running,
    /// A fault ended its program; only DMAKILL gets it out of this.
    Faulting,
}

impl State {
    pub(super) fn of(status: u32) -> Self {
        match status & 0xf {
            0x0 => Self::Stopped,
            0x8 | 0x9 | 0xe => Self::Ending,
            0xf => Self::Faulting,
            _ => Self::Running,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_counts_from_one() {
        // Channels, events: as QEMU's, the largest, the smallest.
        for (cr0, channels_, events_) in
            [(7 << 4 | 7 << 17, 8, 0xff), (u32::MAX, 8, u32::MAX), (0, 1, 1)]
        {
            assert_eq!((channels(cr0), events(cr0)), (channels_, events_), "{cr0:#x}");
        }
    }
}
