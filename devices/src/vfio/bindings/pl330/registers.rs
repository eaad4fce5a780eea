//! The registers: offsets in bytes from the device's base, all of 32 bits.
//!
//! Named as in the TRM (ARM DDI 0424), chapter 3, "Register summary" and "Register descriptions".

use crate::vfio::register_table::offset_of;

/// All of them.
pub(super) const TABLE: &str = "\
000 DSR dma_status=3:0 wakeup_event=8:4 dns=9
004 DPC
020 INTEN
024 INT_EVENT_RIS
028 INTMIS
02c INTCLR
030 FSRD fs_mgr=0
034 FSRC
038 FTRD undef_instr=0 operand_invalid=1 dmago_err=4 mgr_evnt_err=5 instr_fetch_err=16 dbg_instr=30
040*8+4 FTR undef_instr=0 operand_invalid=1 ch_evnt_err=5 ch_periph_err=6 ch_rdwr_err=7 mfifo_err=12 \
st_data_unavailable=13 instr_fetch_err=16 data_write_err=17 data_read_err=18 dbg_instr=30 lockup_err=31
100*8+8 CSR channel_status=3:0 wakeup_number=8:4 dmawfp_b_ns=14 dmawfp_periph=15 cns=21
104*8+8 CPC
400*8+20 SAR
404*8+20 DAR
408*8+20 CCR src_inc=0 src_burst_size=3:1 src_burst_len=7:4 src_prot_ctrl=10:8 src_cache_ctrl=13:11 \
dst_inc=14 dst_burst_size=17:15 dst_burst_len=21:18 dst_prot_ctrl=24:22 dst_cache_ctrl=27:25 \
endian_swap_size=30:28
40c*8+20 LC0_
410*8+20 LC1_
d00 DBGSTATUS dbgstatus=0
d04 DBGCMD dbgcmd=1:0
d08 DBGINST0 debug_thread=0 channel_number=10:8 instruction_byte_0=23:16 instruction_byte_1=31:24
d0c DBGINST1 instruction_byte_2=7:0 instruction_byte_3=15:8 instruction_byte_4=23:16 \
instruction_byte_5=31:24
e00 CR0 periph_req=0 boot_en=1 mgr_ns_at_rst=2 num_chnls=6:4 num_periph_req=16:12 num_events=21:17
e04 CR1 i-cache_len=2:0 num_i-cache_lines=7:4
e08 CR2
e0c CR3
e10 CR4
e14 CRD data_width=2:0 wr_cap=6:4 wr_q_dep=11:8 rd_cap=14:12 rd_q_dep=19:16 data_buffer_dep=29:20
e80 WD wd_irq_only=0
fe0*4+4 periph_id_
ff0*4+4 pcell_id_
";

/// DMA Manager Status Register: the manager's state in bits 3:0.
pub(super) const DSR: u64 = offset_of(TABLE, "DSR");
/// Interrupt Enable Register: an event raises its interrupt (1), or wakes threads that wait for it
/// (0).
pub(super) const INTEN: u64 = offset_of(TABLE, "INTEN");
/// Event-Interrupt Raw Status Register: events that happened.
pub(super) const INT_EVENT_RIS: u64 = offset_of(TABLE, "INT_EVENT_RIS");
/// Interrupt Status Register: interrupts that are high.
pub(super) const INTMIS: u64 = offset_of(TABLE, "INTMIS");
/// Interrupt Clear Register: lowers interrupts, of those enabled in [`INTEN`].
pub(super) const INTCLR: u64 = offset_of(TABLE, "INTCLR");
/// Fault Status DMA Channel Register: a bit for each channel that faults.
pub(super) const FSRC: u64 = offset_of(TABLE, "FSRC");
/// Debug Status Register: bit 0 is set while an instruction of the debug registers runs.
pub(super) const DBGSTATUS: u64 = offset_of(TABLE, "DBGSTATUS");
/// Debug Command Register: writing 0 runs the instruction in the two below.
pub(super) const DBGCMD: u64 = offset_of(TABLE, "DBGCMD");
/// Debug Instruction-0 Register: the thread, and the instruction's first two bytes.
pub(super) const DBGINST0: u64 = offset_of(TABLE, "DBGINST0");
/// Debug Instruction-1 Register: the instruction's other bytes.
pub(super) const DBGINST1: u64 = offset_of(TABLE, "DBGINST1");
/// Configuration Register 0: how many channels and events there are.
pub(super) const CR0: u64 = offset_of(TABLE, "CR0");
/// DMA Configuration Register: the bus' width and the depth of the buffer for data.
pub(super) const CRD: u64 = offset_of(TABLE, "CRD");

/// Channel Status Registers: a channel's state in bits 3:0.
pub(super) fn csr(channel: u8) -> u64 {
    const FIRST: u64 = offset_of(TABLE, "CSR");
    FIRST + u64::from(channel) * 8
}

/// Fault Type DMA Channel Registers: why a channel faults.
pub(super) fn ftr(channel: u8) -> u64 {
    const FIRST: u64 = offset_of(TABLE, "FTR");
    FIRST + u64::from(channel) * 4
}

/// The width of the bus as the logarithm of its bytes, from [`CRD`] bits 2:0; the architecture has
/// 32, 64 and 128 bits.
pub(super) fn bus_width(crd: u32) -> u8 {
    let [low, ..] = crd.to_le_bytes();
    (low & 0x7).clamp(2, 4)
}

/// How many beats of the bus' width the buffer for data (MFIFO) holds, from [`CRD`] bits 29:20.
pub(super) fn buffer_depth(crd: u32) -> u32 {
    (crd >> 20 & 0x3ff) + 1
}

/// What [`ftr`] says, in words: its bits in the order of the TRM.
pub(super) fn fault(ftr: u32) -> String {
    const BITS: [(u32, &str); 12] = [
        (0, "undefined instruction"),
        (1, "invalid operand"),
        (5, "event of the secure world"),
        (6, "peripheral of the secure world"),
        (7, "access of the secure world"),
        (12, "burst larger than the buffer"),
        (13, "nothing to store"),
        (16, "instruction not readable"),
        (17, "data not writable"),
        (18, "data not readable"),
        (30, "by a debug instruction"),
        (31, "locked up"),
    ];
    let words: Vec<&str> =
        BITS.iter().filter(|(bit, _)| ftr >> bit & 1 != 0).map(|(_, word)| *word).collect();
    format!("{} (FTR {ftr:#x})", words.join(", "))
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
pub(super) enum ThreadState {
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

impl ThreadState {
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

    #[test]
    fn the_bus_and_its_buffer_are_those_the_manual_encodes() {
        // As QEMU's: 64 bits, 256 lines; the largest; nothing sensible.
        for (crd, width, depth) in [(3 | 255 << 20, 3, 256), (u32::MAX, 4, 1024), (0, 2, 1)] {
            assert_eq!((bus_width(crd), buffer_depth(crd)), (width, depth), "{crd:#x}");
        }
    }

    #[test]
    fn faults_are_described_in_words() {
        assert_eq!(fault(1 << 18), "data not readable (FTR 0x40000)");
        assert_eq!(fault(3), "undefined instruction, invalid operand (FTR 0x3)");
    }
}
