//! The registers: offsets in bytes from the device's base. They are of 8 to 64 bits, and are accessed by
//! words of 32, which hold what the SD Host Controller Simplified Specification, version 4.20, chapter 2,
//! has at these offsets.

use crate::vfio::register_table::offset_of;

/// All of them, as the specification has them.
pub(super) const TABLE: &str = "\
000 SDMA_System_Address
004/16 Block_Size Transfer_Block_Size=11:0 SDMA_Buffer_Boundary=14:12
006/16 Block_Count
008 Argument
00c/16 Transfer_Mode DMA_Enable=0 Block_Count_Enable=1 Auto_CMD_Enable=3:2 Read=4 Multi_Block=5 \
Response_Type=6 Response_Error_Check=7 Response_Interrupt_Disable=8
00e/16 Command Response_Type_Select=1:0 Sub_Command=2 CRC_Check=3 Index_Check=4 Data_Present=5 Command_Type=7:6 \
Command_Index=13:8
010*4+4 Response
020 Buffer_Data_Port
024 Present_State Command_Inhibit_CMD=0 Command_Inhibit_DAT=1 DAT_Line_Active=2 Retuning_Request=3 \
Write_Transfer_Active=8 Read_Transfer_Active=9 Buffer_Write_Enable=10 Buffer_Read_Enable=11 Card_Inserted=16 \
Card_State_Stable=17 Card_Detect_Pin=18 Write_Enabled=19 DAT_Signal_Level=23:20 CMD_Signal_Level=24
028/8 Host_Control_1 LED=0 Data_Transfer_Width=1 High_Speed=2 DMA_Select=4:3 Extended_Width=5 \
Card_Detect_Test=6 Card_Detect_Select=7
029/8 Power_Control SD_Bus_Power=0 SD_Bus_Voltage=3:1
02a/8 Block_Gap_Control
02b/8 Wakeup_Control
02c/16 Clock_Control Internal_Clock_Enable=0 Internal_Clock_Stable=1 SD_Clock_Enable=2 PLL_Enable=3 \
Clock_Generator_Select=5 Frequency_Select_Upper=7:6 Frequency_Select=15:8
02e/8 Timeout_Control Data_Timeout_Counter=3:0
02f/8 Software_Reset All=0 CMD_Line=1 DAT_Line=2
030/16 Normal_Interrupt_Status Command_Complete=0 Transfer_Complete=1 Block_Gap_Event=2 \
DMA_Interrupt=3 Buffer_Write_Ready=4 Buffer_Read_Ready=5 Card_Insertion=6 Card_Removal=7 Card_Interrupt=8 \
Retuning_Event=12 Error_Interrupt=15
032/16 Error_Interrupt_Status Command_Timeout=0 Command_CRC=1 Command_End_Bit=2 \
Command_Index=3 Data_Timeout=4 Data_CRC=5 Data_End_Bit=6 Current_Limit=7 Auto_CMD=8 ADMA=9 Tuning=10
034/16 Normal_Interrupt_Status_Enable Command_Complete=0 Transfer_Complete=1 Block_Gap_Event=2 \
DMA_Interrupt=3 Buffer_Write_Ready=4 Buffer_Read_Ready=5 Card_Insertion=6 Card_Removal=7 Card_Interrupt=8 \
Retuning_Event=12
036/16 Error_Interrupt_Status_Enable Command_Timeout=0 Command_CRC=1 Command_End_Bit=2 \
Command_Index=3 Data_Timeout=4 Data_CRC=5 Data_End_Bit=6 Current_Limit=7 Auto_CMD=8 ADMA=9 Tuning=10
038/16 Normal_Interrupt_Signal_Enable Command_Complete=0 Transfer_Complete=1 Block_Gap_Event=2 \
DMA_Interrupt=3 Buffer_Write_Ready=4 Buffer_Read_Ready=5 Card_Insertion=6 Card_Removal=7 Card_Interrupt=8 \
Retuning_Event=12
03a/16 Error_Interrupt_Signal_Enable Command_Timeout=0 Command_CRC=1 Command_End_Bit=2 \
Command_Index=3 Data_Timeout=4 Data_CRC=5 Data_End_Bit=6 Current_Limit=7 Auto_CMD=8 ADMA=9 Tuning=10
03c/16 Auto_CMD_Error_Status
03e/16 Host_Control_2 UHS_Mode_Select=2:0 Signaling_1_8V=3 Driver_Strength=5:4 Execute_Tuning=6 \
Sampling_Clock_Select=7 Host_Version_4=12 Addressing_64_bit=13 Asynchronous_Interrupt=14 Preset_Value_Enable=15
040/64 Capabilities
048/64 Maximum_Current_Capabilities
050/16 Force_Event_Auto_CMD
052/16 Force_Event_Error_Interrupt
054/8 ADMA_Error_Status
058/64 ADMA_System_Address
060*8+2/16 Preset_Value
078/64 ADMA3_Integrated_Descriptor_Address
0fc/16 Slot_Interrupt_Status
0fe/16 Host_Controller_Version Specification=7:0 Vendor=15:8
";

/// Block Size in bits 11:0, Block Count in 31:16.
pub(super) const BLOCK: u64 = offset_of(TABLE, "Block_Size");
/// Argument of a command.
pub(super) const ARGUMENT: u64 = offset_of(TABLE, "Argument");
/// Transfer Mode in bits 15:0, Command in 31:16: writing it begins a command.
pub(super) const COMMAND: u64 = offset_of(TABLE, "Transfer_Mode");
/// Response, the first of four words.
pub(super) const RESPONSE: u64 = offset_of(TABLE, "Response");
/// Buffer Data Port.
pub(super) const DATA_PORT: u64 = offset_of(TABLE, "Buffer_Data_Port");
/// Present State.
pub(super) const PRESENT_STATE: u64 = offset_of(TABLE, "Present_State");
/// Present State: a command, or a transfer, is under way.
pub(super) const INHIBIT: u32 = 1 << 0 | 1 << 1;
/// Present State: a card is there.
pub(super) const CARD_INSERTED: u32 = 1 << 16;
/// Host Control 1 in bits 7:0, Power Control in 15:8.
pub(super) const CONTROL: u64 = offset_of(TABLE, "Host_Control_1");
/// Host Control 1: ADMA2 with 32-bit addresses; Power Control: 3.3 V, on.
pub(super) const ADMA2_AND_POWER: u32 = 2 << 3 | 0xf << 8;
/// Clock Control in bits 15:0, Timeout Control in 23:16, Software Reset in 31:24.
pub(super) const CLOCK: u64 = offset_of(TABLE, "Clock_Control");
/// Clock Control: the internal clock is on; it is stable; the card has it.
pub(super) const CLOCK_ON: u32 = 1 << 0;
/// Clock Control: the internal clock is stable.
pub(super) const CLOCK_STABLE: u32 = 1 << 1;
/// Clock Control: the card has the clock.
pub(super) const CARD_CLOCK_ON: u32 = 1 << 2;
/// Timeout Control: the longest.
pub(super) const LONGEST_TIMEOUT: u32 = 0xe << 16;
/// Software Reset: of all but what detects cards.
pub(super) const RESET_ALL: u32 = 1 << 24;
/// Software Reset: of what commands and transfers need.
pub(super) const RESET_LINES: u32 = 1 << 25 | 1 << 26;
/// Software Reset: one of them is under way.
pub(super) const RESET: u32 = RESET_ALL | RESET_LINES;
/// Normal Interrupt Status in bits 15:0, Error Interrupt Status in 31:16; cleared by writing 1.
pub(super) const INT_STATUS: u64 = offset_of(TABLE, "Normal_Interrupt_Status");
/// A command has ended.
pub(super) const COMMAND_COMPLETE: u32 = 1 << 0;
/// A transfer, or being busy, has ended.
pub(super) const TRANSFER_COMPLETE: u32 = 1 << 1;
/// The buffer holds a block that was read.
pub(super) const BUFFER_READ_READY: u32 = 1 << 5;
/// Errors, but those that vendors define.
pub(super) const ERRORS: u32 = 0x07ff << 16;
/// An error: of ADMA.
pub(super) const ADMA_ERROR: u32 = 1 << 25;
/// Which interrupts have a status.
pub(super) const INT_STATUS_ENABLE: u64 = offset_of(TABLE, "Normal_Interrupt_Status_Enable");
/// Which statuses raise the interrupt.
pub(super) const INT_SIGNAL_ENABLE: u64 = offset_of(TABLE, "Normal_Interrupt_Signal_Enable");
/// Capabilities, the first of two words.
pub(super) const CAPABILITIES: u64 = offset_of(TABLE, "Capabilities");
/// Capabilities: ADMA2.
pub(super) const HAS_ADMA2: u32 = 1 << 19;
/// Where the list of ADMA descriptors is, the first of two words.
pub(super) const ADMA_ADDRESS: u64 = offset_of(TABLE, "ADMA_System_Address");
/// Slot Interrupt Status in bits 15:0, the version of the specification in 23:16, the vendor's in 31:24.
pub(super) const VERSION: u64 = offset_of(TABLE, "Slot_Interrupt_Status");

/// The version of the specification, as its first number and 10 times its second, if that is one there
/// is; of [`VERSION`].
pub(super) fn specification(version: u32) -> Option<u32> {
    const KNOWN: [u32; 6] = [100, 200, 300, 400, 410, 420];
    KNOWN.get((version >> 16 & 0xff) as usize).copied()
}

/// Clock Control for a clock of at most `wanted` Hz, from the first word of the capabilities
/// ("Capabilities Register", Base Clock Frequency For SD Clock; "Clock Control Register").
pub(super) fn divided_clock(specification: u32, capabilities: u32, wanted: u32) -> u32 {
    let mask = if specification < 300 { 0x3f } else { 0xff };
    // Not told is as fast as any.
    let base = match capabilities >> 8 & mask {
        0 => 255_000_000,
        base => base.saturating_mul(1_000_000),
    };
    let half = base.div_ceil(wanted.saturating_mul(2).max(1));
    if specification < 300 {
        return half.next_power_of_two().min(0x80) << 8;
    }
    let half = half.min(0x3ff);
    (half & 0xff) << 8 | (half >> 8) << 6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_never_faster_than_wanted() {
        for (version, capabilities, wanted, clock) in [
            (300, 100 << 8, 400_000, 125 << 8),
            (300, 200 << 8, 400_000, 250 << 8),
            (300, 255 << 8, 400_000, (319 & 0xff) << 8 | 1 << 6),
            (300, 100 << 8, 25_000_000, 2 << 8),
            (300, 0, 400_000, (319 & 0xff) << 8 | 1 << 6),
            (200, 50 << 8, 400_000, 64 << 8),
            (200, 0xff << 8, 400_000, 128 << 8),
            (300, 100 << 8, 1, 0xff << 8 | 3 << 6),
        ] {
            let found = divided_clock(version, capabilities, wanted);
            assert_eq!(found, clock, "{version} {capabilities:#x} {wanted}");
        }
    }

    #[test]
    fn versions_are_those_of_the_specification() {
        let version = |number: u32| specification(number << 16 | 0x8900_0000);
        assert_eq!(
            [0, 1, 2, 5, 6, 0xff].map(version),
            [Some(100), Some(200), Some(300), Some(420), None, None]
        );
    }
}
