//! The registers: offsets in bytes from the device's base, all of 32 bits.
//!
//! Named as in AMD's Zynq UltraScale+ register reference (UG1087), module "GEM"; the same as in the
//! Zynq-7000 manual (UG585), appendix B, "Gigabit Ethernet Controller".

use crate::vfio::register_table::offset_of;

/// All of them that Linux' driver knows, and the counters. `_q` are those of the queues beyond the first,
/// from 0 on.
pub(super) const TABLE: &str = "\
000 network_control loopback=0 loopback_local=1 enable_receive=2 enable_transmit=3 man_port_en=4 \
clear_all_stats_regs=5 inc_all_stats_regs=6 stats_write_en=7 back_pressure=8 tx_start=9 tx_halt=10 \
tx_pause_frame_req=11 tx_pause_frame_zero=12 store_rx_ts=15 flush_rx_pkt=18 ptp_unicast_ena=20
004 network_config speed=0 full_duplex=1 discard_non_vlan=2 jumbo_frames=3 copy_all_frames=4 no_broadcast=5 \
multicast_hash=6 unicast_hash=7 receive_1536=8 gigabit_mode=10 pcs_select=11 retry_test=12 pause_enable=13 \
receive_buffer_offset=15:14 length_field_error_discard=16 fcs_remove=17 mdc_clock_division=20:18 \
data_bus_width=22:21 disable_copy_of_pause=23 rx_checksum_offload=24 en_half_duplex_rx=25 ignore_rx_fcs=26 \
sgmii_mode=27 ipg_stretch=28
008 network_status pcs_link_state=0 mdio_in=1 man_done=2
00c user_io
010 dma_config amba_burst_length=4:0 endian_swap_management=6 endian_swap_packet=7 rx_pbuf_size=9:8 \
tx_pbuf_size=10 tx_pbuf_tcp_en=11 rx_buf_size=23:16 force_discard_on_err=24 rx_bd_extended=28 tx_bd_extended=29 \
addr_bus_width=30
014 transmit_status used_bit_read=0 collision_occurred=1 retry_limit_exceeded=2 transmit_go=3 amba_error=4 \
transmit_complete=5 transmit_under_run=6 late_collision_occurred=7 resp_not_ok=8
018 receive_q_ptr
01c transmit_q_ptr
020 receive_status buffer_not_available=0 frame_received=1 receive_overrun=2 resp_not_ok=3
024 int_status management_frame_sent=0 receive_complete=1 rx_used_bit_read=2 tx_used_bit_read=3 \
transmit_under_run=4 retry_limit_exceeded=5 amba_error=6 transmit_complete=7 link_change=9 receive_overrun=10 \
resp_not_ok=11 pause_frame_with_quantum_received=12 pause_time_elapsed=13 pause_frame_transmitted=14
028 int_enable management_frame_sent=0 receive_complete=1 rx_used_bit_read=2 tx_used_bit_read=3 \
transmit_under_run=4 retry_limit_exceeded=5 amba_error=6 transmit_complete=7 link_change=9 receive_overrun=10 \
resp_not_ok=11 pause_frame_with_quantum_received=12 pause_time_elapsed=13 pause_frame_transmitted=14
02c int_disable management_frame_sent=0 receive_complete=1 rx_used_bit_read=2 tx_used_bit_read=3 \
transmit_under_run=4 retry_limit_exceeded=5 amba_error=6 transmit_complete=7 link_change=9 receive_overrun=10 \
resp_not_ok=11 pause_frame_with_quantum_received=12 pause_time_elapsed=13 pause_frame_transmitted=14
030 int_mask management_frame_sent=0 receive_complete=1 rx_used_bit_read=2 tx_used_bit_read=3 \
transmit_under_run=4 retry_limit_exceeded=5 amba_error=6 transmit_complete=7 link_change=9 receive_overrun=10 \
resp_not_ok=11 pause_frame_with_quantum_received=12 pause_time_elapsed=13 pause_frame_transmitted=14
034 phy_management data=15:0 write10=17:16 register_address=22:18 phy_address=27:23 operation=29:28 write1=30
038 pause_time
03c tx_pause_quantum
040 pbuf_txcutthru
044 pbuf_rxcutthru
048 jumbo_max_length
080 hash_bottom
084 hash_top
088*4+8 spec_add_bottom_
08c*4+8 spec_add_top_
0a8*4+4 spec_type_
0b8 wol_register
0bc stretch_ratio
0c0 stacked_vlan
0c4 tx_pfc_pause
0c8 mask_add1_bottom
0cc mask_add1_top
0fc revision_reg module_revision=15:0 module_identification_number=27:16
100*45+4 statistics_
1bc tsu_timer_incr_sub_nsec
1c0 tsu_timer_msb_sec
1d0 tsu_timer_sec
1d4 tsu_timer_nsec
1d8 tsu_timer_adjust
1dc tsu_timer_incr
280*10+4 designcfg_debug_
400*7+4 int_q_status_ receive_complete=1 rx_used_bit_read=2 transmit_complete=7
440*7+4 transmit_q_ptr_
480*7+4 receive_q_ptr_
4c8 upper_tx_q_base_addr
4d4 upper_rx_q_base_addr
600*7+4 int_q_enable_
620*7+4 int_q_disable_
640*7+4 int_q_mask_
";

/// Network control.
pub(super) const NETWORK_CONTROL: u64 = offset_of(TABLE, "network_control");
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
pub(super) const NETWORK_CONFIG: u64 = offset_of(TABLE, "network_config");
/// Network configuration: what integration decides: the divisor of MDC, the width of the bus.
pub(super) const INTEGRATION: u32 = 0x7 << 18 | 0x3 << 21;
/// Network configuration: 100 Mbit/s, full duplex, every frame is taken, without its check sequence.
pub(super) const LOOPBACK_CONFIG: u32 = 1 | 1 << 1 | 1 << 4 | 1 << 17;
/// DMA configuration.
pub(super) const DMA_CONFIG: u64 = offset_of(TABLE, "dma_config");
/// DMA configuration: bursts of 16 beats, whole packet buffers, receive buffers of 1536 bytes, 32-bit
/// addresses.
pub(super) const DMA_SIMPLE: u32 = 0x10 | 0x3 << 8 | 1 << 10 | (1536 / 64) << 16;
/// Transmit status; a bit is cleared by writing 1.
pub(super) const TRANSMIT_STATUS: u64 = offset_of(TABLE, "transmit_status");
/// Transmit status: something is being sent.
pub(super) const TRANSMIT_GO: u32 = 1 << 3;
/// Transmit status: the bus answered with an error.
pub(super) const TRANSMIT_BUS_ERROR: u32 = 1 << 4 | 1 << 8;
/// Where the list of receive descriptors is.
pub(super) const RECEIVE_QUEUE: u64 = offset_of(TABLE, "receive_q_ptr");
/// Where the list of transmit descriptors is.
pub(super) const TRANSMIT_QUEUE: u64 = offset_of(TABLE, "transmit_q_ptr");
/// Receive status; a bit is cleared by writing 1.
pub(super) const RECEIVE_STATUS: u64 = offset_of(TABLE, "receive_status");
/// Receive status: the bus answered with an error.
pub(super) const RECEIVE_BUS_ERROR: u32 = 1 << 3;
/// Interrupt status: cleared by reading, or by writing 1, as the revision has it.
pub(super) const INT_STATUS: u64 = offset_of(TABLE, "int_status");
/// Interrupt status: a frame was received, one was sent, sending failed on the bus, the bus answered
/// with an error.
pub(super) const INT_TESTED: u32 = 1 << 1 | 1 << 6 | 1 << 7 | 1 << 11;
/// Enables interrupts.
pub(super) const INT_ENABLE: u64 = offset_of(TABLE, "int_enable");
/// Disables interrupts.
pub(super) const INT_DISABLE: u64 = offset_of(TABLE, "int_disable");
/// Wake on LAN.
pub(super) const WOL: u64 = offset_of(TABLE, "wol_register");
/// Module ID: which device it is in bits 27:16, its revision in 15:0.
pub(super) const REVISION: u64 = offset_of(TABLE, "revision_reg");
/// Design configuration 6: a bit for each queue beyond the first, in 7:1; 64-bit addresses, 23.
pub(super) const DESIGN_CONFIG6: u64 = offset_of(TABLE, "designcfg_debug_") + 5 * 4;

/// What a queue beyond the first has of a register of the first: the offset of that of queue 1.
pub(super) const INT_STATUS_Q1: u64 = offset_of(TABLE, "int_q_status_");
/// Where the list of transmit descriptors of queue 1 is.
pub(super) const TRANSMIT_QUEUE_Q1: u64 = offset_of(TABLE, "transmit_q_ptr_");
/// Where the list of receive descriptors of queue 1 is.
pub(super) const RECEIVE_QUEUE_Q1: u64 = offset_of(TABLE, "receive_q_ptr_");
/// Disables interrupts of queue 1.
pub(super) const INT_DISABLE_Q1: u64 = offset_of(TABLE, "int_q_disable_");

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
