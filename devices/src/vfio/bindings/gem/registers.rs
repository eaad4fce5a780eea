//! The registers: offsets in bytes from the device's base, all of 32 bits.
//!
//! Named as in AMD's Zynq UltraScale+ register reference (UG1087), module "GEM"; the same as in the
//! Zynq-7000 manual (UG585), appendix B, "Gigabit Ethernet Controller".

/// Network control.
pub(super) const NETWORK_CONTROL: u64 = 0x000;
/// Network control: frames that are sent come back within the controller.
pub(super) const LOOPBACK_LOCAL: u32 = 1 << 1;
/// Network control: receives.
pub(super) const ENABLE_RECEIVE: u32 = 1 << 2;
/// Network control: sends.
pub(super) const ENABLE_TRANSMIT: u32 = 1 << 3;
/// Network control: begins to send what the descriptors say; reads as 0.
pub(super) const TRANSMIT_START: u32 = 1 << 9;
/// Network control: stops sending behind the frame that is being sent; reads as 0.
pub(super) const TRANSMIT_HALT: u32 = 1 << 10;
/// Network configuration.
pub(super) const NETWORK_CONFIG: u64 = 0x004;
/// Network configuration: what integration decides: the divisor of MDC, the width of the bus.
pub(super) const INTEGRATION: u32 = 0x7 << 18 | 0x3 << 21;
/// Network configuration: 100 Mbit/s, full duplex, every frame is taken, without its check sequence.
pub(super) const LOOPBACK_CONFIG: u32 = 1 | 1 << 1 | 1 << 4 | 1 << 17;
/// DMA configuration.
pub(super) const DMA_CONFIG: u64 = 0x010;
/// DMA configuration: bursts of 16 beats, whole packet buffers, receive buffers of 1536 bytes, 32-bit
/// addresses.
pub(super) const DMA_SIMPLE: u32 = 0x10 | 0x3 << 8 | 1 << 10 | (1536 / 64) << 16;
/// Transmit status; a bit is cleared by writing 1.
pub(super) const TRANSMIT_STATUS: u64 = 0x014;
/// Transmit status: something is being sent.
pub(super) const TRANSMIT_GO: u32 = 1 << 3;
/// Transmit status: the bus answered with an error.
pub(super) const TRANSMIT_BUS_ERROR: u32 = 1 << 4 | 1 << 8;
/// Where the list of receive descriptors is.
pub(super) const RECEIVE_QUEUE: u64 = 0x018;
/// Where the list of transmit descriptors is.
pub(super) const TRANSMIT_QUEUE: u64 = 0x01c;
/// Receive status; a bit is cleared by writing 1.
pub(super) const RECEIVE_STATUS: u64 = 0x020;
/// Receive status: the bus answered with an error.
pub(super) const RECEIVE_BUS_ERROR: u32 = 1 << 3;
/// Interrupt status: cleared by reading, or by writing 1, as the revision has it.
pub(super) const INT_STATUS: u64 = 0x024;
/// Interrupt status: a frame was received, one was sent, sending failed on the bus, the bus answered
/// with an error.
pub(super) const INT_TESTED: u32 = 1 << 1 | 1 << 6 | 1 << 7 | 1 << 11;
/// Enables interrupts.
pub(super) const INT_ENABLE: u64 = 0x028;
/// Disables interrupts.
pub(super) const INT_DISABLE: u64 = 0x02c;
/// Wake on LAN.
pub(super) const WOL: u64 = 0x0b8;
/// Module ID: which device it is in bits 27:16, its revision in 15:0.
pub(super) const REVISION: u64 = 0x0fc;
/// Design configuration 6: a bit for each queue beyond the first, in 7:1; 64-bit addresses, 23.
pub(super) const DESIGN_CONFIG6: u64 = 0x294;

/// What a queue beyond the first has of a register of the first: the offset of that of queue 1.
pub(super) const INT_STATUS_Q1: u64 = 0x400;
/// Where the list of transmit descriptors of queue 1 is.
pub(super) const TRANSMIT_QUEUE_Q1: u64 = 0x440;
/// Where the list of receive descriptors of queue 1 is.
pub(super) const RECEIVE_QUEUE_Q1: u64 = 0x480;
/// Disables interrupts of queue 1.
pub(super) const INT_DISABLE_Q1: u64 = 0x620;

/// The offsets of a register that each queue beyond the first has, from that of queue 1 and
/// [`DESIGN_CONFIG6`].
pub(super) fn of_queues(first: u64, design_config6: u32) -> impl Iterator<Item = u64> {
    let there = move |queue: &u64| design_config6 >> queue & 1 != 0;
    (1..8_u64)
        .filter(there)
        .map(move |queue| first.saturating_add((queue.saturating_sub(1)).saturating_mul(4)))
}

/// Whether a [`REVISION`] is that of a GEM: 2 and above, where its forerunner MACB has less
/// (Linux drivers/net/ethernet/cadence/macb_main.c).
pub(super) fn is_gem(revision: u32) -> bool {
    revision != u32::MAX && revision >> 16 & 0xfff >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_beyond_the_first_have_registers_in_a_row() {
        let of = |config| of_queues(INT_DISABLE_Q1, config).collect::<Vec<_>>();
        assert!(of(0).is_empty());
        assert!(of(1).is_empty(), "the first has others");
        assert_eq!(of(0x0080_0002), [0x620]);
        assert_eq!(of(0xff), [0x620, 0x624, 0x628, 0x62c, 0x630, 0x634, 0x638]);
    }

    #[test]
    fn a_gem_is_told_from_a_macb_and_from_nothing() {
        for (revision, expected) in [
            (0x0002_0118, true),
            (0x5007_0106, true),
            (0x0001_010c, false),
            (0, false),
            (u32::MAX, false),
        ] {
            assert_eq!(is_gem(revision), expected, "{revision:#x}");
        }
    }
}
